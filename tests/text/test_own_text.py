"""Any text, from the command line: own files in any script, with each tokenizer, and what is told of their losses."""

import math
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.small_runs import Run, load, scalars, small, table
from tinygpt_pl.module import TinyGPT

RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"  # noqa: RUF001  # it is meant to be in another script
CHINESE = "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。\n"  # noqa: RUF001  # it is meant to be in another script


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize("text", [RUSSIAN * 60, CHINESE * 120], ids=["russian", "chinese"])
def test_own_text_in_any_script_trains_scores_speaks_and_travels(cli: Run, text: str, kind: str) -> None:
    """A network's text is UTF-8 whatever its tokens are, and losses are told per character and per byte."""
    own = Path("свой текст.txt")
    own.write_text(text, encoding="utf-8")
    code, out, err = cli("fit", *small(own, data__tokenizer=kind, data__vocab_size=300, trainer__max_steps=8))
    assert code == 0, err
    last = load(Path("lightning_logs/version_0/checkpoints/last.ckpt"))
    code, out, err = cli("test", "--ckpt_path=last")
    assert code == 0, err
    unit = {"char": "character", "byte": "byte", "bpe": "token"}[kind]
    nats, bits = map(float, re.findall(rf"(\d+\.\d+) nats and (\d+\.\d+) bits per {unit}", out)[0])
    per = {"character": bits, "byte": bits}
    per |= {name: float(number) for number, name in re.findall(r"(\d+\.\d+) per (\w+)", out)}
    val = text[int(len(text) * 0.9) :]
    assert per["character"] == pytest.approx(per["byte"] * len(val.encode()) / len(val), rel=1e-3)
    module = TinyGPT.load_from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")
    assert module.tokenizer is not None
    tokens = len(module.tokenizer.encode(val))
    assert per["character"] == pytest.approx(nats / math.log(2) * tokens / len(val), rel=1e-3)
    rows = scalars(Path("lightning_logs/version_0"))
    assert rows["eval/val_bits_per_char"][-1][1] == pytest.approx(last["val_loss"] / math.log(2) * tokens / len(val))
    assert rows["eval/val_bits_per_byte"][-1][1] * len(val.encode()) == pytest.approx(
        rows["eval/val_bits_per_char"][-1][1] * len(val)
    )

    prompt = text[:5]
    code, written, err = cli("generate", f"--prompt={prompt}", "--max_new_tokens=40", "--seed=1")
    assert code == 0, err
    assert written.startswith(prompt)
    assert cli("export", "--output_dir=out")[0] == 0
    assert cli("import", "--input_dir=out", "--output=back.ckpt")[0] == 0
    assert (
        cli("generate", "--ckpt_path=back.ckpt", f"--prompt={prompt}", "--max_new_tokens=40", "--seed=1")[1] == written
    )
    theirs = AutoTokenizer.from_pretrained("out")
    assert theirs(text[:500])["input_ids"] == module.tokenizer.encode(text[:500]).tolist()
    assert theirs.decode(theirs(text[:500])["input_ids"]) == text[:500]

    code, out, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=10")
    assert (code, table(out)[-1][0]) == (0, "10"), err
    assert len(list(Path("data/tokens").glob("*.safetensors"))) == 1, "the text was encoded a second time"
    code, _, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=12", "--data.vocab_size=500")
    assert (code, "data.vocab_size has to stay 300" in err) == (2, True)


def test_a_network_that_brings_its_tokenizer_takes_no_other(cli: Run, text_file: Path) -> None:
    assert cli("fit", *small(text_file, data__tokenizer="byte", trainer__max_steps=2), "--run_dir=run")[0] == 0
    start = ["fit", "--init_from=run/checkpoints/last.ckpt"]
    code, _, err = cli(*start, f"--data.corpus={text_file}", "--data.tokenizer=char")
    assert (code, "data.tokenizer has to be byte, that of the checkpoint's tokenizer, got char" in err) == (2, True)
    assert len(err.splitlines()) <= 3
    code, _, err = cli(*start, *small(text_file, trainer__max_steps=2), "--run_dir=on")
    assert code == 0, err
    assert load(Path("on/checkpoints/last.ckpt"))["hyper_parameters"]["tokenizer"] == {
        "encoding": "utf-8",
        "kind": "byte",
    }
    assert "tokenizer: byte" in Path("on/config.yaml").read_text()
