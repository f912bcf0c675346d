"""The command line of a script with subclasses: `main(module=MyGPT, data=MyText)`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from tests.small_runs import LAST, LONGER, RUN, Run, small
from tinygpt_pl.commands import main
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.windows import Batch, FixedWindows

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


class MyGPT(TinyGPT):
    """Learns the token after the next one, too, by a head of its own; the last norm is bounded by tanh."""

    def __init__(self, *args: Any, share: float = 0.25, **kwargs: Any) -> None:
        """Add the head.

        Args:
            share: of the second loss.
        """
        super().__init__(*args, **kwargs)
        self.share = share
        self.head = nn.Linear(self.gpt.config.n_embd, self.gpt.config.vocab_size)
        self.gpt.ln_f = nn.Sequential(self.gpt.ln_f, nn.Tanh())  # type: ignore[assignment]  # GPT declares one norm

    def loss_of(self, batch: Batch) -> Tensor:
        if not self.training:
            return super().loss_of(batch)
        features: list[Tensor] = []
        hook = self.gpt.ln_f.register_forward_hook(lambda *call: features.append(call[2]))
        loss = super().loss_of(batch)
        hook.remove()
        further = self.head(features[0][:, :-1])  # (B, T - 1, V)
        return loss + self.share * F.cross_entropy(further.flatten(0, 1), batch[1][:, 1:].flatten())


class Another(TinyGPT):
    """Computes what TinyGPT does, and takes no argument of MyGPT's."""


class MyText(TextDataModule):
    """Is evaluated on the validation split alone."""

    def __init__(self, *args: Any, coin: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.coin = coin

    def val_dataloader(self) -> list[FixedWindows]:
        return super().val_dataloader()[:1]


def run(*args: str) -> int:
    try:
        return main(args, module=MyGPT, data=MyText)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_subclasses_are_trained_resumed_and_used(text_file: Path, cli: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Their arguments are options; the head is trained, clipped, saved and restored; one validation loader is enough.

    Without the subclasses, `fit` refuses to resume and the other commands refuse weights that do not fit.
    """
    own = {"model__share": 0.5, "data__coin": True, "model__optim__max_iters": 12}
    assert run("fit", *small(text_file, **own, trainer__max_steps=12), "--run_dir=whole") == 0
    assert "iter 12 | val " in capsys.readouterr().out
    assert run("fit", *small(text_file, **own)) == 0
    settings = yaml.safe_load((RUN / "config.yaml").read_text())
    assert settings["model"]["share"] == 0.5
    assert settings["data"]["coin"] is True
    assert run("fit", f"--ckpt_path={LAST}", LONGER) == 0
    whole, resumed = (read_checkpoint(path).content for path in (Path("whole/checkpoints/last.ckpt"), LAST))
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    fresh = MyGPT(**whole["hyper_parameters"])
    assert fresh.share == 0.5
    assert whole["state_dict"]["head.weight"].shape == fresh.head.weight.shape
    capsys.readouterr()
    for command in (["test"], ["generate", "--max_new_tokens=5", "--seed=1"]):
        assert run(*command, f"--ckpt_path={LAST}") == 0
        assert "WARNING" not in capsys.readouterr().err

    message = f"{LAST} was written by a script that calls main(module=MyGPT, data=MyText)"
    code, _, err = cli("fit", f"--ckpt_path={LAST}", LONGER)
    assert code == 2
    assert f"{message}; resume it with that script" in err
    for verb in ("test", "generate"):
        assert main([verb, f"--ckpt_path={LAST}"], module=Another) == 2
        assert f"{message}, and TinyGPT cannot load its weights; use that script" in capsys.readouterr().err


def test_weights_that_fit_are_used_with_a_warning(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By every command but one that trains on."""
    assert main(["fit", *small(text_file)], module=Another) == 0
    capsys.readouterr()
    warning = f"WARNING: {LAST} was written by a script that calls main(module=Another); what its subclasses override"
    for command in (["test"], ["generate", "--max_new_tokens=5"], ["validate"], ["export", "--output_dir=exported"]):
        assert main([*command, f"--ckpt_path={LAST}"]) == 0
        assert warning in capsys.readouterr().err
    assert main(["fit", *small(text_file), f"--init_from={LAST}"]) == 0
