"""What a classifier's answers to labelled images say about it.

Shape letters: M images, K classes, R bins of confidence.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NUM_BINS = 15
"""Of confidence, as in Guo et al., On Calibration of Modern Neural Networks (2017)."""


class Calibration(NamedTuple):
    """Confidence against accuracy, by bins of confidence of equal width; empty bins hold 0."""

    ece: float
    """Expected calibration error in percent: the mean gap between confidence and accuracy over the
    bins, each weighted with its images."""
    counts: Tensor  # (R,) int64, images
    confidences: Tensor  # (R,) float64, mean probability of the predicted class
    accuracies: Tensor  # (R,) float64, share of correct predictions


class Quality(NamedTuple):
    """How good the answers are. Accuracies are in percent."""

    top1: float
    top5: float | None
    """None with five classes or fewer."""
    nll: float
    """Mean negative log likelihood of the true class, in nats."""
    brier: float
    """Mean squared distance between the probabilities and the one-hot label, from 0 to 2."""
    calibration: Calibration
    confusion: Tensor  # (K, K) int64, images by true class (row) and predicted class (column)


class Agreement(NamedTuple):
    """How alike two classifiers answer."""

    same_top1: float
    """Percentage of the images for which both predict the same class."""
    kl: float
    """Mean KL(reference || model) of the class probabilities at temperature 1, in nats."""


def measure_quality(logits: Tensor, labels: Tensor) -> Quality:
    """Measure answers against the truth; probabilities are computed in float64.

    Args:
        logits: (M, K).
        labels: true classes, (M,).
    """
    num_classes = logits.shape[1]
    # As in training's own scores, so that ties are broken alike.
    ranked = logits.topk(min(5, num_classes), dim=1).indices  # (M, <=5)
    hits = ranked == labels[:, None]
    log_probabilities = logits.double().log_softmax(1)  # (M, K)
    probabilities = log_probabilities.exp()
    of_label = log_probabilities.gather(1, labels[:, None]).squeeze(1)  # (M,)
    # Sum over k of (p_k - y_k)^2, multiplied out.
    brier = probabilities.square().sum(1) - 2 * of_label.exp() + 1
    return Quality(
        top1=100 * hits[:, 0].double().mean().item(),
        top5=100 * hits.any(1).double().mean().item() if num_classes > 5 else None,
        nll=-of_label.mean().item(),
        brier=brier.mean().item(),
        calibration=calibrate(probabilities.amax(1), hits[:, 0]),
        confusion=confusion_matrix(labels, ranked[:, 0], num_classes=num_classes),
    )


def calibrate(confidences: Tensor, correct: Tensor, *, num_bins: int = NUM_BINS) -> Calibration:
    """Expected calibration error (Guo et al. 2017, equation 3).

    Args:
        confidences: probability of the predicted class, above 0 and up to 1, (M,).
        correct: whether the prediction is right, (M,).
        num_bins: R. Bin r of 1..R holds the confidences in ((r - 1) / R, r / R].
    """
    confidences = confidences.double()
    bins = ((confidences * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)  # rounding
    counts = bins.bincount(minlength=num_bins)  # (R,)
    present = counts.clamp(min=1)  # 0 / 1 for an empty bin
    confidence = bins.bincount(confidences, minlength=num_bins) / present
    accuracy = bins.bincount(correct.double(), minlength=num_bins) / present
    gap = ((accuracy - confidence).abs() * counts).sum() / counts.sum()
    return Calibration(100 * gap.item(), counts, confidence, accuracy)


def confusion_matrix(labels: Tensor, predicted: Tensor, *, num_classes: int) -> Tensor:
    """Images by true class (row) and predicted class (column), (K, K) int64, of (M,) each."""
    cells = (labels * num_classes + predicted).bincount(minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def measure_agreement(logits: Tensor, reference: Tensor) -> Agreement:
    """Compare the answers of two classifiers to the same images, (M, K) each."""
    log_p, log_q = (x.double().log_softmax(1) for x in (reference, logits))
    same = logits.topk(1, dim=1).indices == reference.topk(1, dim=1).indices  # (M, 1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1)  # (M,)
    return Agreement(100 * same.double().mean().item(), kl.mean().item())


class ClassRow(NamedTuple):
    """How one class fares."""

    number: int
    images: int
    """Of this class."""
    correct: int
    predicted: int
    """Images that were taken for this class."""
    confused_with: int | None
    """The class that its images are most often mistaken for; None without a mistake."""
    confused: int
    """How many are."""

    @property
    def top1(self) -> float | None:
        """Percentage of its images that are recognised (recall); None without images."""
        return 100 * self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Percentage of the images taken for it that are of it; None when none is."""
        return 100 * self.correct / self.predicted if self.predicted else None


def class_rows(confusion: Tensor) -> list[ClassRow]:
    """One row for each class, from a confusion matrix (K, K)."""
    images, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    correct = confusion.diagonal().tolist()
    mistakes = confusion - confusion.diagonal().diag()  # (K, K)
    most, where = (part.tolist() for part in mistakes.max(1))
    return [
        ClassRow(k, images[k], correct[k], predicted[k], where[k] if most[k] else None, most[k])
        for k in range(len(images))
    ]
