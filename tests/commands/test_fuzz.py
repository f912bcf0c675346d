"""Whatever is done to base.yaml, it is understood, or refused in three lines before anything is written."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.small_runs import Run
from tinygpt_pl.commands import outcome
from tinygpt_pl.commands.settings import build_parser

BASE = Path(__file__).parents[2] / "configs" / "base.yaml"
SETTINGS: dict[str, Any] = yaml.safe_load(
    build_parser("fit").dump(build_parser("fit").parse_args(["--config", str(BASE)]), skip_unset=False)
)
WORDS = [
    *("auto", "cpu", "cuda", "mps", "tpu", "ddp", "fsdp", "deepspeed", "16-mixed", "bf16-true", "64", "simple", "last"),
    *("pydoc", "tinyshakespeare", "true", "null", "1e-3", "", " ", "x", "../x", "/", "~", "lightning.pytorch.Trainer"),
]
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 7, 64, 10**6, 10**9, 2**31, 2**63, -(2**70)]),
    st.sampled_from([0.5, -0.5, 1.0, 1e-30, 1e300, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.lists(st.integers(-2, 2) | st.floats() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["class_path", "init_args", "x"]), st.sampled_from(WORDS), max_size=2),
)


def places(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a nested mapping, sections included."""
    found = []
    for key, value in tree.items():
        found += [(*above, key), *(places(value, (*above, key)) if isinstance(value, dict) else [])]
    return found


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """The settings of base.yaml, all written out, with one to three of them changed."""
    tree = copy.deepcopy(SETTINGS)
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(places(tree)))
        section = tree
        for name in above:
            section = section[name]
        what = draw(st.sampled_from(["value", "near", "near", "key", "gone", "new"]))
        if what == "value":
            section[key] = draw(VALUES)
        elif what == "near":
            if isinstance(section[key], int | float):
                section[key] *= draw(st.sampled_from([0.5, 1, 2, 3]))
        elif what == "key":
            at = draw(st.integers(0, len(key) - 1))
            section[key[:at] + draw(st.sampled_from(["", "x", "_", key[at] * 2])) + key[at + 1 :]] = section.pop(key)
        elif what == "gone":
            del section[key]
        else:
            section[draw(st.text(min_size=1, max_size=6))] = draw(VALUES)
    return tree


def assert_understood_or_refused(
    cli: Run, cache: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, examples: int
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TINYGPT_CACHE", str(cache))
    monkeypatch.setattr(outcome.Work, "begin", lambda *_: sys.exit(0))  # everything but the training itself
    outcomes = {0: 0, 2: 0}

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changed())
    def check(tree: dict[str, Any]) -> None:
        if isinstance(tree.get("data"), dict):
            tree["data"].pop("cache_dir", None)  # a folder by any name may hold the cache, and would be left there
        (folder / "changed.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
        code, out, err = cli("fit", "--config", "changed.yaml")
        outcomes[code] += 1
        assert "Traceback" not in err
        if code == 2:
            assert err.startswith("error: ")
            assert 1 <= len(err.strip().splitlines()) <= 3, err
            assert out == ""
        left = [path for path in folder.rglob("*") if path.name != "changed.yaml"]
        assert left == [], (tree, err)

    check()
    print(f"{outcomes[0]} understood, {outcomes[2]} refused")
    assert min(outcomes.values()) > examples / 20


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
@pytest.mark.filterwarnings("ignore")
def test_fault_25_sixty_changes_to_the_configuration(
    cli: Run, shakespeare_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert_understood_or_refused(cli, shakespeare_cache, monkeypatch, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("no_network")
@pytest.mark.filterwarnings("ignore")
def test_fault_25_a_thousand_changes_to_the_configuration(
    cli: Run, shakespeare_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert_understood_or_refused(cli, shakespeare_cache, monkeypatch, tmp_path, 1000)
