"""The reference says what the program says, and man and the shells can read it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts.patience import patience
from tests.reference.files import FILES, ROOT
from tests.reference.roff import man_body, plain

BY_HAND = {ROOT / "share/package", ROOT / "share/panicd"}
MANUALS = [name for name in FILES if name.startswith("share/man/")]


@pytest.mark.parametrize("name", FILES)
def test_file_is_as_the_program_says(name: str) -> None:
    written = (ROOT / name).read_text(encoding="utf-8")

    assert written == FILES[name](), "run `make reference`"


def test_no_other_file_lies_there() -> None:
    lying = [path for path in (ROOT / "share").rglob("*") if path.is_file()]
    there = {str(path.relative_to(ROOT)) for path in lying if BY_HAND.isdisjoint(path.parents)}

    assert there == {name for name in FILES if name.startswith("share/")}


@pytest.mark.parametrize("name", MANUALS)
def test_manual_formats_without_a_warning(name: str) -> None:
    formatted = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rCHECKSTYLE=1", ROOT / name],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )

    assert (formatted.returncode, formatted.stderr) == (0, "")


def test_text_that_roff_would_take_for_its_own() -> None:
    assert plain("a-b \\ 'c' …") == r"a\-b \e \(aqc\(aq \[u2026]"
    assert man_body("```\n.TH in code\n```") == ".PP\n.RS 4\n.nf\n\\&.TH in code\n.fi\n.RE\n"


def test_blocks_of_a_document() -> None:
    page = "# Title\n\n## A `part`\n\nWith **weight**\nand [a link](b.md):\n- one\n\n- two\n  more"

    assert man_body(page).splitlines() == [
        '.SH "A PART"',
        ".PP",
        r"With \fBweight\fR and a link: \- one",
        r".IP \(bu 2",
        "two more",
    ]


def test_a_table_s_first_column_is_the_term() -> None:
    table = "| key | values | what it does |\n|---|---|---|\n| `a\\|b` | x | Does it. |"

    assert man_body(table).splitlines() == [
        ".TP",
        r"\fBa|b\fR",
        "Does it.",
        ".br",
        "values: x",
    ]


def test_bash_completes_a_command(tmp_path: Path) -> None:
    program = tmp_path / "panicd"
    program.write_text(
        f"#!{sys.executable}\nfrom panicd.cli import main\nmain(prog_name='panicd')\n"
    )
    program.chmod(0o755)
    script = ROOT / "share/bash-completion/completions/panicd"
    asked = f"""
      source {script}
      for typed in exp expl; do
        COMP_WORDS=(panicd $typed) COMP_CWORD=1 COMPREPLY=()
        _panicd_completion panicd
        printf '%s\\n' "${{COMPREPLY[@]}}"
      done
    """

    completed = subprocess.run(
        ["bash", "-c", asked],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(60),
    )

    explain, export, alone = completed.stdout.splitlines()
    assert explain.startswith("explain  (Show what panicd would do")
    assert export.startswith("export  (Pack all")
    assert alone == "explain", "what is put into the line has no description"
