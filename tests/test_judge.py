"""Agreement, divergence, confidence and classes: against scipy, scikit-learn, NumPy, brute force, and simulations whose truth is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import confusion_matrix, log_loss

from qlab.lab.judge import agreement, classes, confidence
from qlab.lab.significance import holm, mcnemar

# ---- agreement


def drawn(seed: int, n: int = 300, count: int = 4):
    random = np.random.default_rng(seed)
    a = random.normal(size=(n, count))
    b = a + random.normal(size=(n, count)) * 0.8
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(random.integers(0, count, n))


@pytest.mark.parametrize("seed", range(3))
def test_agreement_counts_what_a_loop_counts(seed):
    a, b, labels = drawn(seed)
    cases = {"both_right": 0, "a_only": 0, "b_only": 0, "wrong_alike": 0, "wrong_apart": 0}
    for x, y, label in zip(a.numpy(), b.numpy(), labels.numpy()):
        x, y = int(np.argmax(x)), int(np.argmax(y))
        right = (x == label, y == label)
        name = {(True, True): "both_right", (True, False): "a_only", (False, True): "b_only"}.get(right)
        cases[name or ("wrong_alike" if x == y else "wrong_apart")] += 1
    found = agreement.agreement(a, b, labels)
    assert vars(found) == cases
    assert found.same == np.trace(confusion_matrix(a.argmax(1), b.argmax(1)))
    expected = stats.binomtest(found.same, found.n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_an_image_with_a_nan_is_wrong_and_like_no_other():
    broken = torch.full((2, 3), math.nan)
    assert agreement.agreement(broken, broken, torch.tensor([0, 1])) == agreement.Agreement(0, 0, 0, 0, 2)


@pytest.mark.parametrize("seed", range(3))
def test_divergence_and_loss_equal_scipy_and_scikit_learn(seed):
    a, b, labels = drawn(seed)
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in (a, b))
    assert agreement.divergences(b, a).numpy() == pytest.approx(stats.entropy(p, q, base=2, axis=1), abs=1e-12)
    assert agreement.log_losses(a, labels).mean().item() * math.log(2) == pytest.approx(log_loss(labels, p, labels=range(4)))
    found = agreement.mean(agreement.divergences(b, a))
    assert found.error == pytest.approx(stats.sem(stats.entropy(p, q, base=2, axis=1)))


def test_divergence_of_float16_and_of_far_logits():
    far = torch.tensor([[1000.0, -1000.0]])
    assert agreement.divergences(far.half(), far.half()).item() == 0
    # p is (1, 0), q is (0, 1) but for e^-2000: log2 of e^2000
    assert agreement.divergences(-far, far).item() == pytest.approx(2000 / math.log(2))


@pytest.mark.parametrize(("call", "error", "told"), [
    (lambda: agreement.divergences(torch.ones(2, 3), torch.ones(3, 3)), ValueError, r"shapes \(2, 3\) and \(3, 3\)"),
    (lambda: agreement.divergences(torch.ones(2, 3).int(), torch.ones(2, 3).int()), TypeError, "have to be decoded"),
    (lambda: agreement.divergences(torch.tensor([[math.nan, 1]]), torch.ones(1, 2)), ValueError, "must be finite"),
    (lambda: agreement.agreement(torch.ones(0, 2), torch.ones(0, 2), torch.ones(0).long()), ValueError, "at least one"),
    (lambda: agreement.agreement(torch.ones(2, 2), torch.ones(2, 2), torch.tensor([0, 2])), ValueError, "from 0 to 1"),
    (lambda: agreement.log_losses(torch.ones(2, 2), torch.tensor([0.0, 1.0])), ValueError, "must be integers"),
    (lambda: agreement.mean(torch.tensor([1.0])), ValueError, "at least two"),
    (lambda: agreement.mean(None), TypeError, "values is a NoneType"),
    (lambda: agreement.mean(torch.ones(3) * 1j), TypeError, "must hold real numbers"),
    (lambda: agreement.agreement(torch.ones(2, 2) * 1j, torch.ones(2, 2), torch.tensor([0, 1])), TypeError, "must hold real numbers"),
    (lambda: agreement.agreement("x", torch.ones(2, 2), torch.tensor([0, 1])), TypeError, "a is a str"),
    (lambda: agreement.log_probabilities(torch.ones(2, 0)), ValueError, "at least one of each"),
    (lambda: agreement.divergences(None, torch.ones(2, 2)), TypeError, "logits is a NoneType"),
])
def test_agreement_refuses(call, error, told):
    with pytest.raises(error, match=told):
        call()


ASKED = {"agreement": lambda logits, labels: agreement.agreement(logits, logits, labels), "log_losses": agreement.log_losses,
         "ece": lambda logits, labels: confidence.ece(logits, labels, draws=5),
         "by_class": lambda logits, labels: classes.by_class([x[0] > 1 for x in logits], [x[1] > 0 for x in logits], labels)}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_lists_and_arrays_are_judged_as_tensors_are(ask):
    logits, labels = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), [0, 1, 1]
    told = str(ask(torch.from_numpy(logits), torch.tensor(labels)))
    for same in (labels, np.array(labels, np.uint16), torch.tensor(labels).to(torch.uint16)):
        assert str(ask(logits, same)) == str(ask(logits.tolist(), same)) == told


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("labels", [None, "x", ["a", "b"], torch.tensor([0, 1]) * 1j, torch.tensor([0.0, 1.0]), torch.tensor([0, -1]),
                                    torch.tensor([[0, 1]]), torch.tensor([True, False]), [0]], ids=repr)
def test_labels_that_are_none_are_refused_in_one_sentence(ask, labels):
    with pytest.raises((ValueError, TypeError), match="^labels (is|have|run) .*(must be|give a tensor)") as caught:
        ask(np.ones((2, 2)), labels)
    assert str(caught.value).count(". ") == 0


# ---- confidence

def two_classes(sure: np.ndarray, right: np.ndarray):
    """Logits whose larger probability is sure, of class 0, and labels that make it right or wrong."""
    return torch.from_numpy(np.stack([np.log(sure), np.log1p(-sure)], 1)), torch.from_numpy(1 - right.astype(int))


@pytest.mark.parametrize("by", ["width", "mass"])
def test_ece_is_the_formula_in_a_loop(by):
    random = np.random.default_rng(0)
    sure = 0.5 + random.beta(4, 1, 700) / 2.001
    right = random.random(700) < sure - 0.05
    edges = np.linspace(0, 1, 11) if by == "width" else np.quantile(sure, np.linspace(0, 1, 11))
    expected, n = 0.0, 0
    for low, high in itertools.pairwise(edges):
        inside = (sure > low) & (sure <= high) if low > edges[0] else sure <= high
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
            n += inside.sum()
    found = confidence.ece(*two_classes(sure, right), bins=10, by=by)
    assert n == found.n == 700
    assert found.found == pytest.approx(expected)
    assert sum(b.right for b in found.bins) == right.sum()
    if by == "mass":
        assert max(b.n for b in found.bins) - min(b.n for b in found.bins) <= 1


def test_ece_does_not_depend_on_the_order_of_the_images():
    logits, labels = two_classes(np.repeat([0.7, 0.9], 50), np.arange(100) % 3 > 0)
    turned = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert confidence.ece(logits, labels, by="mass") == confidence.ece(logits[turned], labels[turned], by="mass")


def test_chance_is_the_mean_deviation_of_a_binomial():
    # One bin of n images with confidence c: E |Binomial(n, c) / n - c|, from the probabilities themselves.
    n, c = 40, 0.8
    k = np.arange(n + 1)
    expected = (stats.binom.pmf(k, n, c) * np.abs(k / n - c)).sum()
    found = confidence.ece(*two_classes(np.full(n, c), k[:n] < 30), bins=1, draws=4000)
    assert found.chance == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("off", [0.0, 0.1])
def test_interval_of_the_ece_holds_the_truth(off):
    random, held = np.random.default_rng(1), 0
    for trial in range(30):
        sure = 0.6 + 0.39 * random.beta(4, 1, 400)
        found = confidence.ece(*two_classes(sure, random.random(400) < sure - off), draws=60, seed=trial)
        held += found.low <= off <= found.high
    assert held >= 25  # of 30; at 95 % fewer are seen once in 300 times


def test_resampled_images_show_more_error_than_there_is():
    # Why the plain bootstrap will not do: of a perfectly calibrated network the resamples' ECE lies above the one found.
    random = np.random.default_rng(0)
    sure = 0.6 + 0.39 * random.beta(4, 1, 400)
    logits, labels = two_classes(sure, random.random(400) < sure)
    again = [confidence.ece(logits[i], labels[i], draws=1).found for i in torch.from_numpy(random.integers(0, 400, (60, 400)))]
    found = confidence.ece(logits, labels)
    assert found.low == 0 < found.found < np.mean(again) and np.quantile(again, 0.025) > 0.5 * found.chance


@pytest.mark.parametrize(("options", "told"), [
    ({"by": "size"}, 'must be "width" or "mass"'), ({"bins": 0}, "bins is 0"), ({"draws": 0}, "draws is 0"),
    ({"bins": 1.5}, "bins is 1.5"), ({"bins": "x"}, "bins is 'x'"), ({"bins": math.nan}, "bins is nan"), ({"draws": True}, "draws is True"),
    ({"seed": -1}, "seed is -1"), ({"seed": 1.5}, "seed is 1.5")])
def test_ece_refuses(options, told):
    with pytest.raises(ValueError, match=told):
        confidence.ece(torch.ones(2, 2), torch.tensor([0, 1]), **options)


# ---- several questions, and the classes

@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closure_of_bonferroni(ps):
    # Marcus, Peritz and Gabriel 1976: a hypothesis is rejected if every set of hypotheses that holds it is, here by Bonferroni.
    sets = [chosen for size in range(1, len(ps) + 1) for chosen in itertools.combinations(range(len(ps)), size)]
    expected = [max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s) for i in range(len(ps))]
    assert holm(ps) == pytest.approx(expected)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p(p):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        holm([0.5, p])


def test_a_lost_class_is_found_behind_equal_accuracies():
    labels = torch.arange(1000) % 10
    a = torch.arange(1000) % 7 > 0
    b = a.clone()
    b[labels == 3], b[(labels == 5) & ~a] = False, True
    b[((labels == 7) & ~a) | ((labels == 8) & ~a)] = True
    changes = classes.by_class(a, b, labels)
    assert [c.label for c in changes][0] == 3 and changes[0].significant
    for c in changes:
        mine = labels == c.label
        assert c.pair == mcnemar(a[mine], b[mine]) and c.before == a[mine].double().mean()
        assert c.p >= c.pair.p
        assert c.pair.p == pytest.approx(stats.binomtest(c.pair.a_only, c.pair.a_only + c.pair.b_only).pvalue
                                         if c.pair.a_only + c.pair.b_only else 1)


@pytest.mark.parametrize(("labels", "names", "told"), [
    ([0, 1, 2], ["a", "b"], "names has 2 entries"), ([0, 1], None, "one for each of the 3 images"), ([0, 1, -1], None, "0 or more"),
    ([0.0, 1.0, 2.0], None, "must be integers")])
def test_by_class_refuses(labels, names, told):
    right = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=told):
        classes.by_class(right, right, torch.tensor(labels), names)


@pytest.mark.parametrize("names", [3, "ab", [1, 2], {"a", "b"}])
def test_names_are_words(names):
    with pytest.raises(TypeError, match="must be a list or tuple of words"):
        classes.by_class([True, False], [True, True], [0, 1], names)
