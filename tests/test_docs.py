"""The pages in docs/ name tests and settings that exist, and computed figures as they are computed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import scaling
from tinygpt_pl.commands.settings import build_parser
from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.training.resume import LASTING

TESTS = Path(__file__).parent
PAGES = [*TESTS.parent.glob("*.md"), *TESTS.parent.glob("docs/*.md"), TESTS.parent / "lightning_logs" / "README.md"]
FAULTS = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")


def test_each_of_the_thirty_cases_has_a_test() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    tests = set(re.findall(r"^def (test_fault_\w+)\(", source, re.MULTILINE))
    rows = re.findall(r"^\| (\d+) (.*)$", FAULTS, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    named = set()
    for number, row in rows:
        found = re.findall(r"`(test_fault\w+)`", row)
        assert found, f"case {number} names no test"
        assert set(found) <= tests, number
        assert all(int(number) in [int(n) for n in re.findall(r"(?<=_)\d\d(?=_)", name)] for name in found), number
        named |= set(found)
    assert named == tests


def test_each_kind_of_fault_that_users_ran_into_has_a_test() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE))
    rows = [row for row in FAULTS.split("## What users ran into")[1].splitlines() if "`test_" in row]
    assert len(rows) > 30
    for row in rows:
        assert set(re.findall(r"`(test_\w+)`", row)) <= tests, row


def test_the_page_names_every_setting_that_must_stay() -> None:
    (row,) = re.findall(r"^\| the text .* must stay: .*$", FAULTS, re.MULTILINE)
    assert set(LASTING) <= set(re.findall(r"`([\w.]+)`", row))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("table", [scaling.memory, scaling.communication, scaling.plan])
def test_the_tables_of_scaling_are_what_is_computed(table: Callable[[], str]) -> None:
    assert table() in (TESTS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_plan_is_a_configuration_that_parses(tmp_path: Path) -> None:
    page = (TESTS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    (plan,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "billion.yaml").write_text(plan)
    config = build_parser("fit").parse_args(["--config", str(tmp_path / "billion.yaml")])
    gpt = GPTConfig(**vars(config.model.gpt), vocab_size=config.data.vocab_size)
    assert gpt == scaling.BILLION
    assert config.data.batch_size * config.trainer.devices * config.trainer.accumulate_grad_batches == 256
    assert config.trainer.max_steps == scaling.STEPS


def test_what_a_block_keeps_is_counted_in_a_network() -> None:
    """Storages that autograd saves, each once, in float32, of two blocks and of one; the difference is a block's."""

    def kept(layers: int) -> int:
        network = GPT(GPTConfig(vocab_size=65, block_size=128, n_layer=layers, n_head=4, n_embd=256, dropout=0.0))
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(torch.zeros(8, 128, dtype=torch.long), torch.zeros(8, 128, dtype=torch.long))
        return sum(found.values())

    config = GPTConfig(n_embd=256, n_head=4, dropout=0.0)
    assert (kept(2) - kept(1)) / (8 * 128) == pytest.approx(scaling.saved_per_token(config, half=False), rel=0.02)
