"""What a run needs, computed and not measured: memory, communication, and a plan for a billion parameters.

    python -m benchmarks.scaling

docs/scaling.md derives the formulas and has these tables. A GB is 10^9 bytes; letters are those of gpt.py.
"""

import torch

from tinygpt_pl.gpt import GPT, GPTConfig, parameter_count

FLOPS = 989e12 * 0.4  # of a GPU: dense bfloat16 of an H100 SXM by its data sheet, and the share of it that is assumed
LLAMA = {"dropout": 0.0, "position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
BILLION, THREE, SEVEN = (
    GPTConfig(32_768, 2048, *sizes, **LLAMA)  # type: ignore[arg-type]  # of several types
    for sizes in ((20, 16, 2048), (26, 24, 3072), (34, 32, 4096))
)
GPUS, WINDOWS, ACCUMULATE, STEPS = 8, 8, 4, 41_000  # windows of a GPU in a micro-batch
EVAL_INTERVAL, EVAL_ITERS, DISK = 1000, 10, 1e9  # the last: bytes a second to a checkpoint, assumed
SIZES = {  # network, windows of a GPU in a micro-batch
    "`base.yaml`, no dropout": (GPTConfig(dropout=0.0), 64),
    "GPT-2": (GPTConfig(50_257, 1024, 12, 12, 768, 0.0), 16),
    "the plan": (BILLION, WINDOWS),
    "3 billion": (THREE, 4),
    "7 billion": (SEVEN, 2),
}
LINKS = {  # GPUs, and bytes a second one way out of each, or out of each machine of eight where there are two
    "NVLink 4": (8, 450e9),
    "PCIe 5.0, 16 lanes": (8, 63e9),
    "InfiniBand, eight times 400 Gb/s": (16, 400e9),
    "Ethernet, 100 Gb/s": (16, 12.5e9),
    "Ethernet, 10 Gb/s": (16, 1.25e9),
}


def counts(config: GPTConfig) -> tuple[int, int, int]:
    """All parameters; those outside the blocks; and the operations of a training step per token."""
    with torch.device("meta"):
        network = GPT(config)
    P = parameter_count(config)
    return P, P - sum(p.numel() for p in network.h.parameters()), network.flops_per_token()


def saved_per_token(config: GPTConfig, half: bool) -> int:
    """Bytes that a block keeps of a token for its backward, without dropout and norms of queries and keys."""
    C, kv = config.n_embd, config.kv_heads * config.head_size
    turned = C + kv if config.position == "rotary" else 0
    inner = (4 if config.activation == "swiglu" else 2) * config.mlp_size
    return 8 * C + (2 if half else 4) * (2 * C + C + 2 * kv + turned + C + inner)


def activations(config: GPTConfig, windows: int) -> int:
    """Bytes at the top of a step: what the blocks and the head keep, and three matrices of scores in float32."""
    top = 6 * config.n_embd + 12 * config.vocab_size
    return windows * config.block_size * (config.n_layer * saved_per_token(config, True) + top)


def state(config: GPTConfig, strategy: str, gpus: int) -> float:
    """Bytes of weights, gradients and AdamW's two means on a GPU, with copies in bfloat16 and with what is gathered."""
    P, R, each = counts(config)
    copies = 2 * (each // 6 - 2 * config.n_layer * config.n_embd * config.block_size)
    if strategy == "fsdp2":
        return 16 * P / gpus + 8 * R + 16 * (P - R) / config.n_layer + copies
    return (20 if strategy == "ddp" else 16) * P + copies


def moved(config: GPTConfig, strategy: str, gpus: int) -> float:
    """Bytes that a GPU sends: in an optimizer step with DDP, in a micro-batch with FSDP2."""
    P, R, _ = counts(config)
    return 4 * (gpus - 1) / gpus * (2 * P if strategy == "ddp" else 3 * (P - R) + 2 * R)


def memory() -> str:
    """What a GPU holds in bf16-mixed."""
    table = "| network | parameters | windows | activations | one GPU | DDP | FSDP2 on 8 |\n" + "|---" * 7 + "|"
    for name, (config, windows) in SIZES.items():
        kept = activations(config, windows)
        held = [kept, *(state(config, kind, 8) + kept for kind in ("one", "ddp", "fsdp2"))]
        table += f"\n| {name} | {parameter_count(config):,} | {windows} of {config.block_size} |"
        table += "".join(f" {size / 1e9:.1f} GB |" for size in held)
    return table


def communication() -> str:
    """How long the plan's step sends, and at how many tokens of a GPU that is a tenth of the time that it computes."""
    table = "| link | GPUs | one way | DDP, a step | FSDP2, a step | DDP, tokens | FSDP2, tokens |\n" + "|---" * 7 + "|"
    for name, (gpus, rate) in LINKS.items():
        table += f"\n| {name} | {gpus} | {rate / 1e9:g} GB/s |"
        ddp, fsdp2 = (moved(BILLION, kind, gpus) / rate for kind in ("ddp", "fsdp2"))
        table += f" {ddp:.3f} s | {GPUS * ACCUMULATE // gpus * fsdp2:.3f} s |"
        table += "".join(f" {10 * seconds * FLOPS / counts(BILLION)[2]:,.0f} |" for seconds in (ddp, fsdp2))
    return table


def plan() -> str:
    """A billion parameters on eight GPUs."""
    (P, _, each), kept, windows = counts(BILLION), activations(BILLION, WINDOWS), GPUS * WINDOWS * ACCUMULATE
    times, batch = STEPS // EVAL_INTERVAL + 1, windows * BILLION.block_size
    step, write = batch * each / GPUS / FLOPS, 12 * P / DISK
    look, save = times * 2 * EVAL_ITERS * step / 3, 2 * times * write
    hours = (STEPS * step + look + save) / 3600
    ddp, fsdp2 = ((state(BILLION, kind, GPUS) + kept) / 1e9 for kind in ("ddp", "fsdp2"))
    return f"""| what | computed |
|---|---|
| parameters | {P:,}; {each / 1e9:.2f} billion operations a token, {STEPS * batch * each:.2e} in all |
| tokens, 20 for each parameter | {20 * P / 1e9:.2f} billion; {40 * P / 1e9:.1f} GB at two bytes each |
| batch | {windows} windows, {batch:,} tokens |
| steps | {-(-20 * P // batch):,}, rounded up to {STEPS:,}: {STEPS * batch / 1e9:.2f} billion tokens |
| warm-up over 375 million tokens | {375e6 / batch:.0f} steps |
| memory of a GPU | {ddp:.1f} GB with DDP, {fsdp2:.1f} GB with FSDP2; of it activations {kept / 1e9:.1f} GB |
| a step | {step:.2f} s, {batch / step:,.0f} tokens/s; all of them {STEPS * step / 3600:.1f} h |
| {times} evaluations | {look / 60:.0f} min, {look / STEPS / step:.1%} of the steps' time |
| a checkpoint | {12 * P / 1e9:.1f} GB, {write:.0f} s |
| {2 * times} saves at most | {save / 60:.0f} min, {save / STEPS / step:.1%} of the steps' time |
| the run | {hours:.1f} h, {GPUS * hours:.0f} GPU hours |
| main memory | {GPUS * 4 * P / 1e9:.0f} GB to start, {GPUS * 12 * P / 1e9:.0f} GB to resume |"""


if __name__ == "__main__":
    print(memory(), communication(), plan(), sep="\n\n")
