"""The diagnosis of a run's curve: its findings without those that others explain, and a summary in a sentence."""

from collections.abc import Callable
from dataclasses import dataclass

from tinygpt_pl.guards import expected_start
from tinygpt_pl.insight.evidence import Finding, clipped_share
from tinygpt_pl.insight.generalization import (
    best_early,
    identical_splits,
    mild_overfitting,
    noisy_evaluation,
    overfitting,
    still_falling,
    too_good,
)
from tinygpt_pl.insight.history import History
from tinygpt_pl.insight.symptoms import (
    always_clipped,
    broken_start,
    diverged,
    dropout_not_switched,
    flat,
    groups_differ,
    learning_rate_too_high,
    never_good,
    off_schedule,
    resume_bump,
)

SYMPTOMS: list[Callable[[History], Finding | None]] = [
    broken_start,
    off_schedule,
    groups_differ,
    flat,
    learning_rate_too_high,
    diverged,
    never_good,
    too_good,
    identical_splits,
    overfitting,
    always_clipped,
    dropout_not_switched,
    resume_bump,
    noisy_evaluation,
    mild_overfitting,
    best_early,
    still_falling,
]
"""All symptoms, to which others may be added, in an order in which a symptom comes before those that it explains."""

NOT_LEARNING = {
    "flat",
    "never-good",
    "always-clipped",
    "noisy-evaluation",
    "dropout-not-switched",
    "still-falling",
    "best-early",
}
"""Findings that follow wherever a run does not learn."""

EXPLAINS = {
    "wrong-start": {"diverged"},
    "off-schedule": NOT_LEARNING | {"learning-rate-too-high", "diverged", "overfitting"},
    "flat": NOT_LEARNING | {"learning-rate-too-high"},
    "learning-rate-too-high": NOT_LEARNING | {"diverged", "overfitting", "mild-overfitting"},
    "diverged": NOT_LEARNING,
    "never-good": NOT_LEARNING | {"overfitting", "mild-overfitting"},
    "too-good": NOT_LEARNING | {"identical-splits", "overfitting", "mild-overfitting"},
    "overfitting": {"always-clipped", "mild-overfitting", "best-early"},
}
"""Finding to the findings that are only its consequences, and that it hides."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings, faults first, and a summary of the run."""

    findings: tuple[Finding, ...]
    verdict: str
    """`healthy`, `ill` with the names of the faults, or `too early to say`."""
    summary: str

    @property
    def healthy(self) -> bool:
        """Whether no finding is a fault."""
        return not any(finding.fault for finding in self.findings)

    @property
    def line(self) -> str:
        """Verdict and summary in one line."""
        return f"{self.verdict}: {self.summary}"


def diagnose(history: History) -> Diagnosis:
    """Apply every symptom to a curve; without an evaluation, only `diverged`."""
    if not history.evaluations:
        stop = diverged(history)
        verdict = f"ill ({stop.name})" if stop else "too early to say"
        return Diagnosis((stop,) if stop else (), verdict, "no evaluation of both splits has given numbers yet")
    found: list[Finding] = []
    explained: set[str] = set()
    sound = history.finite()
    for symptom in SYMPTOMS:
        finding = symptom(history if symptom is diverged else sound)
        if finding and finding.name not in explained:
            found.append(finding)
            explained |= EXPLAINS.get(finding.name, set())
    found.sort(key=lambda finding: not finding.fault)
    faults = ", ".join(finding.name for finding in found if finding.fault)
    return Diagnosis(tuple(found), f"ill ({faults})" if faults else "healthy", summarise(sound))


def summarise(history: History) -> str:
    """Losses, gap, clipping and progress of a run, in a sentence."""
    setup, evaluations = history.setups[0], history.evaluations
    first, last, best = evaluations[0], evaluations[-1], min(evaluations, key=lambda e: e.val)
    uniform = f" (ln({setup.vocab_size}) = {expected_start(setup.vocab_size):.2f})" if first.it == 0 else ""
    if first is last:
        said = [f"validation is {first.val:.4f} at iteration {first.it}{uniform}"]
    else:
        change = f"validation went from {first.val:.2f} at iteration {first.it}{uniform} to {last.val:.4f} at {last.it}"
        place = "at the end" if best is last else f"at iteration {best.it} with {best.val:.4f}"
        said = [f"{change}, and was best {place}"]
    said.append(f"the gap to training is {last.val - last.train:.2f}")
    if setup.clip and history.curve("optim/clipped_share") and history.last > 1.2 * setup.optim.warmup_iters:
        said.append(f"{clipped_share(history):.0%} of the steps after the warm-up were clipped")
    if not history.finished:
        said.append(f"it has come to iteration {history.last} of {history.setups[-1].max_steps}")
    return "; ".join(said)
