"""Every entry that there can be, drawn by Hypothesis: any text, any number."""

from typing import get_args

from hypothesis import strategies as st

from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Decided,
    Enforced,
    Observed,
    Opened,
    Repeated,
    Settled,
    StepBegun,
    StepEnded,
)
from panicd.rules.plan import AnyStep, Plan, RunRelaunch
from panicd.rules.qapi import PanicInformation
from panicd.rules.signature import Signature

times = st.floats(0, 2**37)  # until the year 6325
texts = st.text(st.characters(), max_size=20)  # with lone surrogates
steps: st.SearchStrategy[AnyStep] = st.one_of(
    *(st.builds(kind, timeout=times) for kind in get_args(AnyStep) if kind is not RunRelaunch),
    st.builds(RunRelaunch, timeout=times, command=st.lists(texts, max_size=3).map(tuple)),
)
plans = st.builds(Plan, steps=st.lists(steps, max_size=4).map(tuple))
fields = st.tuples(texts, st.one_of(texts, st.integers(-(2**63), 2**64 - 1)))
information = st.builds(PanicInformation, texts, st.lists(fields, max_size=4).map(tuple))
openings = st.builds(Opened, times, texts, texts, texts, texts, information=st.none() | information)
signatures = st.none() | st.builds(Signature, texts, st.lists(texts, max_size=3).map(tuple), texts)
later_entries: st.SearchStrategy[AnyEntry] = st.one_of(
    st.builds(Repeated, times, st.integers(1, 2**40)),
    st.builds(Decided, times, plans),
    st.builds(StepBegun, times, st.integers(0, 3)),
    st.builds(StepEnded, times, st.integers(0, 3), detail=texts, signature=signatures),
    st.builds(Settled, times),
    st.builds(Closed, times, detail=texts),
    st.builds(Asked, times, what=texts, why=texts),
    st.builds(Acknowledged, times, why=texts),
    st.builds(Observed, times, texts),
    st.builds(Enforced, times),
)
