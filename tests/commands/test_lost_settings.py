"""No setting is dropped or changed without a word: not a key, not an option, not a number."""

import re
from pathlib import Path

import pytest

from tests.small_runs import Run
from tinygpt_pl.commands import generate
from tinygpt_pl.commands.parser import repeated
from tinygpt_pl.commands.settings import read_settings

FILES = {
    "twice.yaml": "eval_interval: 7\nmodel:\n  gpt:\n    n_layer: 1\n    n_head: 2\n    n_layer: 3\n",
    "sections.yaml": "trainer:\n  max_steps: 3\ndata:\n  batch_size: 2\ntrainer:\n  devices: 1\n",
    "overlay.yaml": "config: twice.yaml\n",
    "flow.yaml": "data: {batch_size: 2, 'batch_size': 3}\n",
    "callbacks.yaml": "trainer:\n  callbacks:\n  - class_path: a\n    class_path: b\n",
    "octal.yaml": "data:\n  batch_size: 010\n",
    "sixty.yaml": "trainer:\n  max_steps: 1:30\n",
    "text.yaml": "run_dir: None\n",
    "seven.yaml": "eval_interval: 7\n",
    "empty.yaml": "",
    "list.yaml": "- eval_interval\n",
    "tabs.yaml": "data:\n\tbatch_size: 2\n",
    "case.yaml": "Eval_interval: 7\n",
    "true.yaml": "config: true\n",
    "several.yaml": "config: [seven.yaml]\n",
    "later.yaml": "eval_interval: 8\nconfig: seven.yaml\n",
    "dotted.yaml": "trainer.max_steps: 11\ntrainer:\n  max_steps: 12\n",
    "valueless.yaml": "eval_interval:\n",
    "loop.yaml": "config: loop.yaml\n",
    "there.yaml": "config: back.yaml\n",
    "back.yaml": "config: there.yaml\n",
    "below.yaml": "data:\n  batch_size: 3\n  eval_iters: 4\ntrainer:\n  gradient_clip_val: null\n  max_steps: 7\n",
    "above.yaml": "config: below.yaml\ndata:\n  eval_iters: 5\ntrainer:\n  max_steps: 9\n",
    "nowhere.yaml": "config: nowhere\n",
    "other.yaml": f"config: {'b' * 300}\n",
    "tag.yaml": "eval_interval: !!python/object/apply:os.getpid [1]\n",
    "two.yaml": "eval_interval: 1\n---\neval_interval: 2\n",
    "circle.yaml": "eval_interval: &a [*a]\n",
    "deep.yaml": f"data: {'[' * 5000}\n",
    "bomb.yaml": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 10}]\n" for i in range(1, 10)),
}


@pytest.fixture(autouse=True)
def in_a_folder_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--config twice.yaml", "twice.yaml: model.gpt.n_layer is given twice, in line 4 and in line 6"),
        ("--config sections.yaml", "sections.yaml: trainer is given twice, in line 1 and in line 5"),
        ("--config seven.yaml --config twice.yaml", "twice.yaml: model.gpt.n_layer is given twice"),
        ("--config overlay.yaml", "twice.yaml: model.gpt.n_layer is given twice"),
        ("--config flow.yaml", "flow.yaml: data.batch_size is given twice, in line 1 and in line 1"),
        ("--config callbacks.yaml", "trainer.callbacks.class_path is given twice, in line 3 and in line 4"),
        ("--config={eval_interval:␣1,eval_interval:␣2}", "eval_interval is given twice"),
        ("--model.gpt={n_layer:␣1,n_layer:␣2}", "n_layer is given twice"),
        ("--config octal.yaml", "octal.yaml: data.batch_size in line 2 is 010, which YAML reads as 8"),
        ("--config sixty.yaml", "trainer.max_steps in line 2 is 1:30, which YAML reads as 90"),
        ("--config text.yaml", "run_dir is the text 'None'"),
        ("--run_dir None", "run_dir is the text 'None'; leave it out, or write null"),
        ("--data.offline_corpus none", "data.offline_corpus is the text 'none'"),
        ("--run_dir=", "run_dir is the text ''"),
        ("--init_from=", "init_from is the text ''"),
        ("--data.cache_dir=", "data.cache_dir is the text ''"),
        ("--eval_interval 8 --config seven.yaml", "--eval_interval 8 comes before a --config that sets 7"),
        ("--eval_interval=8 -cseven.yaml --seed_everything 1", "--eval_interval 8 comes before a --config that sets 7"),
        ("--config empty.yaml", "empty.yaml: it has to hold settings"),
        ("--config list.yaml", "list.yaml: it has to hold settings"),
        ("--config tabs.yaml", "tabs.yaml: found character '.t' that cannot start any token in line 2"),
        ("--config=true.yaml", "true.yaml: config must be the name of one file, got true"),
        ("--config=several.yaml", "several.yaml: config must be the name of one file, got several values"),
        ("--config=later.yaml", "later.yaml: config in line 2 must come before the settings"),
        ("--config=dotted.yaml", "dotted.yaml: trainer.max_steps is given twice, in line 1 and in line 3"),
        ("--config=valueless.yaml", "valueless.yaml: eval_interval has no value; write null for none"),
        ("--config=seven.yaml --model.optim.max_lr .nan", "max_lr has to be positive and finite, got nan"),
        ("--seed_everything 4294967296", "seed_everything has to be below 2\\*\\*32, got 4294967296"),
        ("--sample_tokens 99999999999999999999", "sample_tokens has to be below"),
        ("--config=loop.yaml", "loop.yaml builds on itself"),
        ("--config=there.yaml", "there.yaml builds on itself"),
        ("--config=nowhere.yaml", "must be a file or one of .*; got nowhere"),
        ("--config={config:␣loop.yaml}", "loop.yaml builds on itself"),
        (f"--config={'a' * 300}", "must be a file or one of .*; got a{100}"),
        ("--config=other.yaml", "must be a file or one of .*; got b{100}"),
        (f"--config={{data:␣{{corpus:␣{'a' * 300}}}}}", f"{'a' * 300}"),
        ("--config=tag.yaml", "tag.yaml: could not determine a constructor for the tag .* in line 1"),
        ("--config=two.yaml", "two.yaml: expected a single document .* but found another document in line 2"),
        ("--config=circle.yaml", "circle.yaml: eval_interval contains itself"),
        ("--config=deep.yaml", "deep.yaml: too many levels of settings"),
        ("--config=bomb.yaml", "bomb.yaml: more than 10,000 values"),
        ("--config case.yaml", "did you mean --eval_interval"),
        ("--trainer.max_steps 1:30", "trainer.max_steps is 1:30, which YAML reads as 90; write 90"),
        ("--model.optim.max_lr=0:0.5", "model.optim.max_lr is 0:0.5, which YAML reads as 0.5; write 0.5"),
        ("--no-compile", "did you mean --compile"),
    ],
)
def test_what_would_be_lost_is_refused(cli: Run, words: str, named: str) -> None:
    code, out, err = cli("fit", *(word.replace("␣", " ") for word in words.split(" ")))
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) <= 3
    assert re.search(named, err), err
    assert {path.name for path in Path().iterdir()} == FILES.keys()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--eval_interval 7 --eval_interval 0", "--eval_interval"),
        ("--eval_interval=7 --seed_everything 1 --eval_interval 0", "--eval_interval"),
        ("--ckpt_path last --ckpt_path best", "--ckpt_path"),
        ("--model.gpt.n_layer 2 --model.gpt {n_layer:␣0}", "--model.gpt.n_layer"),
        ("--model {gpt:␣{n_layer:␣2}} --model.gpt={n_layer:␣0}", "--model.gpt.n_layer"),
    ],
)
def test_an_option_that_is_given_twice_is_named(cli: Run, words: str, named: str) -> None:
    code, _, err = cli("fit", *(word.replace("␣", " ") for word in words.split(" ")))
    assert code == 2
    assert f"WARNING: {named} is given twice; the last one counts\n" in err


@pytest.mark.parametrize(
    "words",
    [
        *("--config a.yaml --config b.yaml", "--stop a --stop b", "--prompt --prompt_file"),
        *("--data.batch_size 4 --data {corpus:a.txt}", "--data {batch_size: --data.batch_size=4"),
    ],
)
def test_what_may_be_repeated_is_not_named(words: str) -> None:
    assert repeated(words.split()) == []


@pytest.mark.parametrize("folder", [".", "sub"])
def test_a_file_builds_on_another_setting_by_setting(folder: str) -> None:
    """jsonargparse replaces a group, such as trainer, by that of the later file: what only the earlier has was lost."""
    top = Path(folder) / "top.yaml"
    top.parent.mkdir(exist_ok=True)
    top.write_text(f"config: {'../' if folder == 'sub' else ''}above.yaml\neval_interval: 3\n")
    built, _ = read_settings("fit", ["--config", str(top)])
    inline, _ = read_settings("fit", ["--config", "{config: above.yaml, eval_interval: 3}"])
    stacked, _ = read_settings("fit", ["--config=below.yaml", "--config=above.yaml", "--eval_interval=3"])
    for settings in (built, inline, stacked):
        assert (settings.data["batch_size"], settings.data["eval_iters"], settings.run.eval_interval) == (3, 5, 3)
        assert (settings.trainer["gradient_clip_val"], settings.trainer["max_steps"]) == (None, 9)


def test_options_and_files_that_agree_may_come_in_any_order() -> None:
    for words in (
        "--config seven.yaml --eval_interval 8",
        "--seed_everything 1 --config seven.yaml --eval_interval=8",
        "--config octet.yaml -c seven.yaml --eval_interval 8",
    ):
        Path("octet.yaml").write_text("eval_interval: 6")
        settings, _ = read_settings("fit", words.split())
        assert settings.run.eval_interval == 8
    settings, _ = read_settings("fit", ["--eval_interval", "7", "--config", "seven.yaml"])
    assert settings.run.eval_interval == 7


def test_what_yaml_means_is_kept() -> None:
    Path("anchors.yaml").write_text(
        "model:\n  gpt: &gpt {n_layer: 3, n_head: 2}\n  optim: {max_lr: 1e-3, min_lr: 1e-4}\n"
        "print_samples: yes\ncompile: off\nsave_minutes: 1_0.5\nrun_dir: null\nema_decay: ~\n"
    )
    Path("merged.yaml").write_text("model: {gpt: {<<: {n_layer: 3, n_embd: 8, n_head: 2}, n_layer: 4}}\n")
    settings, _ = read_settings("fit", ["--config", "anchors.yaml", "--config", "merged.yaml"])
    assert (settings.gpt.n_layer, settings.gpt.n_embd, settings.optim.max_lr) == (4, 8, 1e-3)
    assert (settings.run.print_samples, settings.run.compile, settings.run.save_minutes) == (True, False, 10.5)
    assert (settings.run_dir, settings.run.ema_decay) == (None, None)


def test_a_list_is_added_to_and_its_items_have_settings() -> None:
    name = "lightning.pytorch.callbacks.LearningRateMonitor"
    words = [f"--trainer.callbacks+={name}", "--trainer.callbacks.log_momentum=true"] * 2
    settings, _ = read_settings("fit", words)
    assert [callback.log_momentum for callback in settings.trainer["callbacks"]] == [True, True]


def test_the_prompt_may_be_any_text() -> None:
    parser = generate.build_parser()
    for text in ("None", "null", "", "~", "- a", "1e-3", "a: 1"):
        assert parser.parse_args([f"--prompt={text}"]).prompt == text
    assert parser.parse_args(["--stop=None", "--stop=null"]).stop == ["None", "null"]


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_the_defaults_of_a_class_are_its_authors(logger: str) -> None:
    """An empty prefix, which nobody has given, was refused."""
    settings, _ = read_settings("fit", [f"--trainer.logger={logger}", "--trainer.logger.save_dir=logs"])
    assert settings.config.trainer.logger.init_args.prefix == ""
