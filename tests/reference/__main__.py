"""``python -m tests.reference``: write every file of the reference anew."""

from tests.reference.files import FILES, ROOT

for name, text in FILES.items():
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(), encoding="utf-8")
