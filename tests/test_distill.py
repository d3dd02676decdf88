"""qlab.nets.distill against torch's own divergence, the paper's formulas in NumPy, autograd and brute force; and the committed record."""

import copy
import decimal
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import kl_div

from qlab.lab import data, runs, zoo
from qlab.lab.experiments import distillation as experiment
from qlab.lab.measure import accuracy, mcnemar, over_seeds
from qlab.nets import distill
from qlab.nets.soft_loss import distillation_loss, soft_labels
from qlab.nets.training import fit


def logits(n=16, classes=10, seed=0, scale=3.0):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(width, width, 3, stride=2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(width * 9, 4))


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(96, 1, 8, 8, generator=generator), torch.randint(0, 4, (96,), generator=generator)
    return images, labels, small(9, width=8).eval().requires_grad_(False)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


class Viewed(nn.Module):
    """A network that calls view on its maps, as many do."""

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(width)
        self.maps, self.last = nn.Conv2d(3, width, 3), nn.Linear(36 * width, 4)

    def forward(self, x):
        return self.last(self.maps(x).relu().view(x.size(0), -1))


def test_teacher_and_student_may_call_view():
    images, labels = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    teacher = Viewed(6).eval().requires_grad_(False)
    with torch.no_grad():
        v = teacher(images)
    assert torch.equal(distill.teacher_logits(teacher, images), v)
    live, cached = Viewed(), Viewed()
    distill.distill(live, teacher, images, labels, 2, 0.05, batch_size=20)
    distill.distill(cached, v, images, labels, 2, 0.05, batch_size=20)
    for a, b in zip(live.parameters(), cached.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    distill.fit_hints(live, teacher, images, "maps", "maps", 1, 0.01)
    assert all(a.is_contiguous() for a in [*live.parameters(), *teacher.parameters()])


# The loss

@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_is_the_papers_formula(temperature, alpha):
    z, v, y = logits(seed=1), logits(seed=2), torch.arange(16) % 10

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(v.numpy() / temperature), softmax(z.numpy() / temperature)
    soft = (p * np.log(p / q)).sum(1).mean()
    hard = -np.log(softmax(z.numpy())[np.arange(16), y.numpy()]).mean()
    expected = alpha * temperature**2 * soft + (1 - alpha) * hard
    assert distillation_loss(z, v, y, temperature, alpha).item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(soft_labels(v, temperature), p, rtol=1e-12)
    by_torch = kl_div(torch.log_softmax(z / temperature, 1), torch.softmax(v / temperature, 1), reduction="batchmean")
    assert soft == pytest.approx(by_torch.item(), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_a_student_equal_to_the_teacher_has_no_soft_loss_and_no_gradient(temperature):
    z = logits().requires_grad_()
    loss = distillation_loss(z, z.detach().clone(), None, temperature, 1.0)
    loss.backward()
    assert loss.item() == 0 and z.grad.abs().max() < 1e-15


@given(st.floats(0.2, 50), st.integers(0, 10_000))
def test_the_soft_loss_is_never_negative_and_ignores_a_constant_added_to_the_logits(temperature, seed):
    z, v = logits(seed=seed), logits(seed=seed + 1)
    loss = distillation_loss(z, v, None, temperature, 1.0).item()
    shifted = distillation_loss(z + 5, v - 3, None, temperature, 1.0).item()
    assert loss > 0 and shifted == pytest.approx(loss, rel=1e-6)


@given(st.floats(0.05, 200), st.floats(1.01, 5), st.integers(0, 10_000))
def test_a_higher_temperature_softens_and_keeps_the_order(temperature, factor, seed):
    v = logits(seed=seed)
    cold, warm = soft_labels(v, temperature), soft_labels(v, factor * temperature)
    assert torch.allclose(warm.sum(1), torch.ones(16, dtype=torch.float64))
    assert (warm.amax(1) <= cold.amax(1) + 1e-12).all() and (warm.argmax(1) == v.argmax(1)).all()
    entropy = [-(p * p.clamp(min=1e-300).log()).sum(1) for p in (cold, warm)]
    assert (entropy[1] >= entropy[0] - 1e-12).all()


# Masked classes, and logits that are none

def by_hand(z, v, temperature):
    """KL, mean over the rows, and its gradient for z, in NumPy's float64: the terms with p = 0 are left out."""
    z, v = (x.detach().double().numpy() / temperature for x in (z, v))
    with np.errstate(all="ignore"):
        log_q, log_p = (x - x.max(1, keepdims=True) for x in (z, v))
        log_q, log_p = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (log_q, log_p))
        p = np.exp(log_p)
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return terms.sum() / len(z), (np.exp(log_q) - p) / temperature / len(z)


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 4.0]), st.booleans())
def test_a_masked_class_adds_nothing(n, classes, seed, temperature, student_too):
    z, v = logits(n, classes, seed), logits(n, classes, seed + 1)
    masked = torch.rand(n, classes, generator=torch.Generator().manual_seed(seed)) < 0.4
    masked[torch.arange(n), torch.arange(n) % classes] = False
    v[masked] = -math.inf
    if student_too:
        z[masked] = -math.inf
    z.requires_grad_()
    loss = distillation_loss(z, v, None, temperature, 1.0)
    loss.backward()
    expected, gradient = by_hand(z, v, temperature)
    assert loss.item() == pytest.approx(temperature**2 * expected, rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(z.grad, temperature**2 * gradient, rtol=1e-9, atol=1e-14)
    e = np.exp((v.numpy() - v.numpy().max(1, keepdims=True)) / temperature)
    np.testing.assert_allclose(soft_labels(v, temperature), e / e.sum(1, keepdims=True), rtol=1e-12)


def test_a_class_that_only_the_student_masks():
    z, far, near = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, -200.0]]), torch.tensor([[0.0, 0.0, -2.0]])
    assert distillation_loss(z, far, None, 1.0, 1.0).item() == 0                    # the teacher's share is 0 in float32
    assert distillation_loss(z, near, None, 1.0, 1.0).item() == math.inf
    v, y = torch.tensor([[1.0, -math.inf, 0.0]]), torch.tensor([0])
    mixed = distillation_loss(torch.zeros(1, 3), v, y, 2.0, 0.5).item()             # and beside the labels
    p = 1 / (1 + math.exp(-0.5))
    soft = p * math.log(3 * p) + (1 - p) * math.log(3 * (1 - p))
    assert mixed == pytest.approx(0.5 * 4 * soft + 0.5 * math.log(3), rel=1e-6)


@pytest.mark.parametrize("row", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [math.inf, -math.inf, 0.0]])
def test_a_row_without_a_softmax_is_refused(row):
    v, z = torch.tensor([[0.0, 1.0, 2.0], row]), torch.zeros(2, 3)
    sentence = "^1 of the 2 rows of the (teacher's )?logits hold NaN or .infinity, or nothing but -infinity: give finite logits, or"
    for call in (lambda: distillation_loss(z, v, torch.tensor([0, 1])), lambda: distillation_loss(z, v, None, 0.5, 1.0),
                 lambda: soft_labels(v, 2.0), lambda: distill.best_bias(v, torch.tensor([0, 1]), 2),
                 lambda: distillation_loss(z.half(), v.half(), None, alpha=1.0)):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(ValueError, match="1 of the 1 rows of the logits"):
        soft_labels(v[1], 2.0)
    plain = distillation_loss(z, v, torch.tensor([0, 1]), alpha=0.0)                # where the teacher has no say
    assert plain.item() == pytest.approx(math.log(3))


def test_a_student_that_diverged_is_told_by_its_loss():
    assert distillation_loss(torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2), None, alpha=1.0).isnan()


def test_logits_that_a_small_temperature_makes_infinite():
    v = torch.tensor([[3e38, 1.0, -3e38], [-3e38, -3e38, -3e38], [1.0, 1.0, 1.0 - 1e-3]])
    expected = torch.tensor([[1.0, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]])
    torch.testing.assert_close(soft_labels(v, 1e-10), expected)
    assert distillation_loss(v[:1], v[:1], None, 1e-10, 1.0).item() == 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_float32(half):
    z, v, y = logits(seed=1).to(half), logits(seed=2).to(half), torch.arange(16) % 10
    for alpha in (0.0, 0.5, 1.0):
        loss = distillation_loss(z, v, y, 3.0, alpha)
        assert loss.dtype == torch.float32 and torch.equal(loss, distillation_loss(z.float(), v.float(), y, 3.0, alpha))
    assert torch.equal(soft_labels(v, 3.0), soft_labels(v.float(), 3.0))
    assert distill.best_bias(z, y, 3) == distill.best_bias(z.double(), y, 3)
    z.requires_grad_()
    distillation_loss(z, v, y, 3.0).backward()
    copied = z.detach().float().requires_grad_()
    distillation_loss(copied, v.float(), y, 3.0).backward()
    assert torch.equal(z.grad, copied.grad.to(half))


# Why the T^2

def soft_gradient(z, v, temperature, alpha=1.0):
    z = z.clone().requires_grad_()
    distillation_loss(z, v, None, temperature, alpha).backward()
    return z.grad * len(z)                                                                  # one image's, without the mean


@pytest.mark.parametrize("temperature", [0.5, 3.0, 10.0])
def test_gradient_is_temperature_times_the_difference_of_the_soft_labels(temperature):
    z, v = logits(seed=3), logits(seed=4)                                                   # T^2 times the paper's equation 2
    expected = temperature * (soft_labels(z, temperature) - soft_labels(v, temperature))
    assert torch.allclose(soft_gradient(z, v, temperature), expected, rtol=1e-10, atol=1e-14)


def test_at_high_temperatures_the_gradient_is_that_of_matching_centred_logits():
    z, v = logits(seed=5), logits(seed=6)
    limit = ((z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))) / 10            # equation 4, N = 10
    error = [(soft_gradient(z, v, t) - limit).abs().max().item() for t in (100, 1000, 10_000)]
    assert error[2] < 1e-3 and error[0] / error[1] == pytest.approx(10, rel=0.1) and error[1] / error[2] == pytest.approx(10, rel=0.1)
    centred = ((z - z.mean(1, keepdim=True) - v + v.mean(1, keepdim=True)) ** 2).sum(1).mean() / 20
    assert distillation_loss(z, v, None, 10_000, 1.0).item() == pytest.approx(centred.item(), rel=1e-2)


def in_decimals(z, v, temperature):
    """T^2 KL, the mean over the rows, and its gradient for z, in 500 digits."""
    with decimal.localcontext(decimal.Context(prec=500, Emin=-10**7, Emax=10**7)):
        t, total, gradient = decimal.Decimal(temperature), decimal.Decimal(0), []
        for rows in zip(z.tolist(), v.tolist()):
            e = [[(decimal.Decimal(x) / t).exp() if x > -math.inf else decimal.Decimal(0) for x in row] for row in rows]
            q, p = ([x / sum(row) for x in row] for row in e)
            total += sum(a * (a / b).ln() for a, b in zip(p, q) if a)
            gradient.append([float(t * (b - a) / len(z)) for a, b in zip(p, q)])
        return float(t * t * total / len(z)), torch.tensor(gradient, dtype=torch.float64)


@pytest.mark.parametrize("dtype, rel", [(torch.float32, 2e-7), (torch.float64, 1e-13)])
@pytest.mark.parametrize("temperature", [30.0, 1e3, 1e4, 1e8, 1e20, 1e100, 1e200])
@pytest.mark.parametrize("masked", ["none", "both", "teacher"])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 300.0])
def test_no_temperature_loses_the_loss_or_its_gradient(temperature, dtype, rel, masked, scale):
    z, v = logits(3, 4, 1, scale).to(dtype), logits(3, 4, 2, scale).to(dtype)
    v[1] = z[1]
    if masked != "none":
        v[:, 1] = -math.inf
        z[:, 1] = -math.inf if masked == "both" else z[:, 1]
    expected, gradient = in_decimals(z, v, temperature)
    z.requires_grad_()
    loss = distillation_loss(z, v, None, temperature, 1.0)
    loss.backward()
    if expected > torch.finfo(dtype).max:  # the student has a share for what the teacher masks
        assert loss.item() == math.inf and masked == "teacher"
    else:
        assert loss.item() == pytest.approx(expected, rel=rel)
        assert (z.grad - gradient).abs().max() <= 3 * rel * gradient.abs().max()


@pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-18, 1e-25, 1e-30])
def test_a_temperature_near_zero_leaves_the_largest_logits(temperature):
    z, v = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True), torch.tensor([[4.0, 2.0, 3.0]])
    loss = distillation_loss(z, v, None, temperature, 1.0)                          # T^2 (z_2 - z_0) / T
    loss.backward()
    assert loss.item() == pytest.approx(2 * temperature, rel=1e-6, abs=0)
    assert z.grad[0].tolist() == pytest.approx([-temperature, 0, temperature], rel=1e-6, abs=0)


def test_without_the_square_the_gradient_falls_as_one_over_the_square():
    z, v = logits(seed=7), logits(seed=8)
    with_it = [soft_gradient(z, v, t).norm().item() for t in (20, 40, 80)]
    without = [g / t**2 for g, t in zip(with_it, (20, 40, 80))]
    assert without[0] / without[1] == pytest.approx(4, rel=0.2) and without[1] / without[2] == pytest.approx(4, rel=0.1)
    assert max(with_it) / min(with_it) < 1.2


# Training

def test_alpha_zero_is_plain_training_bit_for_bit(problem):
    images, labels, teacher = problem
    plain = small()
    history = fit(plain, images, labels, 3, 0.1, seed=5, batch_size=32)
    for given_as in (teacher, distill.teacher_logits(teacher, images)):
        student = small()
        assert distill.distill(student, given_as, images, labels, 3, 0.1, alpha=0.0, seed=5, batch_size=32) == history
        assert same(student, plain)


def test_training_repeats_itself_and_the_seed_matters(problem):
    images, labels, teacher = problem
    students = [small() for _ in range(3)]
    for student, seed in zip(students, (1, 1, 2)):
        distill.distill(student, teacher, images, labels, 2, 0.1, seed=seed)
    assert same(students[0], students[1]) and not same(students[0], students[2])


def test_cached_and_live_teacher_give_the_same_student(problem):
    images, labels, teacher = problem
    cached, live = small(), small()
    distill.distill(cached, distill.teacher_logits(teacher, images, batch_size=7), images, labels, 2, 0.1)
    before = copy.deepcopy(teacher.state_dict())
    distill.distill(live, teacher, images, labels, 2, 0.1)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(cached.state_dict().values(), live.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), teacher.state_dict().values())) and not teacher.training


def test_a_live_teacher_sees_the_augmented_images(problem):
    images, labels, teacher = problem
    seen = {"teacher": [], "student": []}
    student = small()
    hooks = [net.register_forward_pre_hook(lambda module, args, who=who: seen[who].append(args[0].clone()))
             for who, net in (("teacher", teacher), ("student", student))]
    distill.distill(student, teacher, images, labels, 1, 0.1, augment=lambda x, generator: x.flip(3))
    for hook in hooks:
        hook.remove()
    assert len(seen["student"]) == 1 and torch.equal(seen["teacher"][0], seen["student"][0])
    assert torch.equal(seen["student"][0].flip(3).sum(0), seen["student"][0].sum(0).flip(2)) and not torch.equal(seen["student"][0], images)


def test_the_teacher_teaches_without_labels(problem):
    images, _, _ = problem
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval().requires_grad_(False)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    history = distill.distill(student, teacher, images, None, 60, 0.5, alpha=1.0, weight_decay=0.0)
    with torch.no_grad():
        agree = (student(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert history[-1] < 0.02 * history[0] and agree == 1


# Hints

def test_hints_teach_the_layers_up_to_the_guided_one_and_no_other(problem):
    images, _, teacher = problem
    student = small()
    before = copy.deepcopy(student.state_dict())
    history = distill.fit_hints(student, teacher, images, "4", "4", 30, 0.05)
    changed = {key for key, tensor in student.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"0.weight", "0.bias", "3.weight", "3.bias"} and history[-1] < 0.5 * history[0]


def test_hints_leave_the_statistics_of_a_later_batch_norm_alone(problem):
    images, _, teacher = problem
    student = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    distill.fit_hints(student, teacher, images, "2", "1", 1, 0.05)
    assert student[1].num_batches_tracked == 1 and student[4].num_batches_tracked == 0 and not student[4].running_mean.any()


def test_hint_loss_is_half_the_mean_square_after_the_regressor(problem):
    images, _, _ = problem
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, width)) for width in (5, 3))
    teacher.eval().requires_grad_(False)
    torch.manual_seed(7)
    r = nn.Linear(3, 5)
    with torch.no_grad():
        u, v = teacher(images).numpy(), student(images).numpy()
        expected = 0.5 * ((u - (v @ r.weight.numpy().T + r.bias.numpy())) ** 2).mean()
    first = distill.fit_hints(student, teacher, images, "1", "1", 1, 1e-9, seed=7, batch_size=96)[0]
    assert first == pytest.approx(float(expected), rel=1e-5)


def test_hints_repeat_themselves(problem):
    images, _, teacher = problem
    a, b = small(), small()
    histories = [distill.fit_hints(student, teacher, images, "1", "1", 2, 0.05, seed=4) for student in (a, b)]
    assert histories[0] == histories[1] and same(a, b)


# The bias of a class never seen

@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 10_000), st.booleans(), st.booleans())
def test_best_bias_is_the_best_of_all(n, classes, seed, ties, masks):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    z = z.round() if ties else z
    if masks:
        masked = torch.rand(n, classes, generator=generator) < 0.3
        masked[torch.arange(n), torch.arange(n) % classes] = False
        z[masked] = -math.inf
    y, missing = torch.randint(0, classes, (n,), generator=generator), seed % classes

    def right(bias):
        shifted = z.clone()
        shifted[:, missing] += bias
        return int((shifted.argmax(1) == y).sum())

    others = z.clone()
    others[:, missing] = -math.inf
    d = (others.max(1).values - z[:, missing]).sort().values
    d = d[d.isfinite()]
    between = [d[0] - 1, *((a + b) / 2 for a, b in zip(d, d[1:]) if b > a), d[-1] + 1] if len(d) else [0.0]
    assert math.isfinite(distill.best_bias(z, y, missing))
    assert right(distill.best_bias(z, y, missing)) == max(right(bias) for bias in between)


# Errors

def test_loss_refuses_what_makes_no_sense():
    z, v, y = logits(), logits(seed=1), torch.zeros(16, dtype=torch.long)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"temperature is {temperature}, and must be a finite number above 0"):
            distillation_loss(z, v, y, temperature)
        with pytest.raises(ValueError, match="temperature"):
            soft_labels(v, temperature)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"alpha is {alpha}, and must be from 0 to 1"):
            distillation_loss(z, v, y, 2.0, alpha)
    for other in (v[:8], v[:, :5], v[0]):
        with pytest.raises(ValueError, match=r"\(16, 10\) and the teacher's"):
            distillation_loss(z, other, y)
    with pytest.raises(ValueError, match="none of them 0"):
        distillation_loss(z[:0], v[:0], y[:0])
    with pytest.raises(ValueError, match="require a gradient"):
        distillation_loss(z, v.requires_grad_(), y)
    v = logits(seed=1)
    with pytest.raises(ValueError, match="labels is None and alpha is 0.5"):
        distillation_loss(z, v, None, alpha=0.5)
    for low, high in ((0, 10), (-1, 3), (-100, 0)):                                         # torch leaves -100 out without a word
        with pytest.raises(ValueError, match=f"labels go from {low} to {high}, and must be classes from 0 to 9"):
            distillation_loss(z, v, torch.tensor([low] + [high] * 15))
        with pytest.raises(ValueError, match=f"labels go from {low} to {high}"):
            distill.best_bias(z, torch.tensor([low] + [high] * 15), 1)
    for wrong in (y[:15], y[:, None], y.float(), y.int(), y.bool()):
        with pytest.raises(ValueError, match=r"labels are torch.\w+ of shape .*, and must be int64, one for each of the 16 images"):
            distillation_loss(z, v, wrong)


def test_training_refuses_a_teacher_that_is_not_ready(problem):
    images, labels, teacher = problem
    calls = [lambda t: distill.distill(small(), t, images, labels, 1, 0.1), lambda t: distill.teacher_logits(t, images),
             lambda t: distill.fit_hints(small(), t, images, "1", "1", 1, 0.1)]
    training, half = copy.deepcopy(teacher).train(), copy.deepcopy(teacher)
    half[2].train()                                                                         # the dropout alone
    learning = copy.deepcopy(teacher).requires_grad_(True)
    for call in calls:
        for bad in (training, half):
            with pytest.raises(ValueError, match="in training mode"):
                call(bad)
        with pytest.raises(ValueError, match="require gradients"):
            call(learning)


def test_training_refuses_what_does_not_fit(problem):
    images, labels, teacher = problem
    cached = distill.teacher_logits(teacher, images)
    with pytest.raises(ValueError, match="96 images and 95 cached logits"):
        distill.distill(small(), cached[:95], images, labels, 1, 0.1)
    with pytest.raises(ValueError, match="96 images and 95 labels"):
        distill.distill(small(), cached, images, labels[:95], 1, 0.1)
    for teaching in (cached, teacher):
        student = small()
        with pytest.raises(ValueError, match="labels go from 0 to 4, and must be classes from 0 to 3"):
            distill.distill(student, teaching, images, labels + (labels == 3), 1, 0.1, batch_size=8)
        assert same(student, small())
    with pytest.raises(ValueError, match="augment would change"):
        distill.distill(small(), cached, images, labels, 1, 0.1, augment=lambda x, generator: x)
    with pytest.raises(ValueError, match="student's logits"):
        distill.distill(small(), cached[:, :3], images, labels, 1, 0.1)
    with pytest.raises(ValueError, match="no images"):
        distill.teacher_logits(teacher, images[:0])
    with pytest.raises(ValueError, match="epochs is 0"):
        distill.distill(small(), cached, images, labels, 0, 0.1)


def test_hints_refuse_layers_that_do_not_fit(problem):
    images, _, teacher = problem
    with pytest.raises(ValueError, match=r"1 gives \(6, 8, 8\) an image and 4 \(8, 3, 3\)"):
        distill.fit_hints(small(), teacher, images, "1", "4", 1, 0.1)
    with pytest.raises(ValueError, match=r"1 gives \(6, 8, 8\) an image and 6 \(4,\)"):
        distill.fit_hints(small(), teacher, images, "1", "6", 1, 0.1)
    with pytest.raises(ValueError, match="layer is 'relu', and must be one of 0, 1, 2"):
        distill.fit_hints(small(), teacher, images, "relu", "1", 1, 0.1)

    class Lazy(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    with pytest.raises(ValueError, match="layer '1' is not called"):
        distill.features(Lazy(nn.Linear(2, 2), nn.Linear(2, 2)), "1", torch.zeros(1, 2))


def test_best_bias_refuses_what_makes_no_sense():
    z, y = logits(), torch.zeros(16, dtype=torch.long)
    for missing in (10, -1, 1.5, 1.0, True, "1", None):
        with pytest.raises(ValueError, match=f"missing is {missing!r}, and must be a class from 0 to 9"):
            distill.best_bias(z, y, missing)
    with pytest.raises(ValueError, match=r"\(16, 10\) for 15 labels"):
        distill.best_bias(z, y[:15], 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(problem):
    images, labels, teacher = (part.cuda() if isinstance(part, torch.Tensor) else copy.deepcopy(part).cuda() for part in problem)
    student = small().cuda()
    distill.fit_hints(student, teacher, images, "1", "1", 1, 0.05)
    history = distill.distill(student, distill.teacher_logits(teacher, images), images, labels, 5, 0.1)
    assert history[-1] < history[0] and next(student.parameters()).is_cuda


# The experiment and its record

@pytest.fixture(scope="module", params=["full", "small"])
def part(request):
    return request.param


@pytest.fixture(scope="module")
def record(part):
    return runs.load(f"distillation_{part}")


def by_arm(record, arm):
    return {row["seed"]: row["result"] for row in record["rows"] if row["arm"] == arm}


def test_student_and_twin_start_alike_and_validation_images_are_not_trained_on():
    assert same(experiment.student(3), experiment.student(3)) and not same(experiment.student(3), experiment.student(4))
    validation, rest = experiment.split()
    assert len(validation) == 5000 and torch.equal(torch.cat([validation, rest]).sort().values, torch.arange(60_000))


def test_views_are_the_images_and_their_mirror_images_with_what_the_teacher_says():
    images, labels, logits = experiment.views(torch.tensor([5, 9]))
    whole, teacher = data.load("train"), zoo.load("resnet")
    assert torch.equal(images[1], whole.images[9]) and torch.equal(images[3], whole.images[9].flip(2))
    assert labels.tolist() == whole.labels[[5, 9, 5, 9]].tolist()
    with torch.no_grad():
        assert torch.allclose(logits, teacher(images), atol=1e-4)


def test_the_experiment_chooses_stage_by_stage_and_collects(part, tmp_path, monkeypatch):
    twins = [{"weight_decay": 1e-3, "max_lr": rate} for rate in (0.1, 0.01)]
    monkeypatch.setattr(experiment, "RATES", {"full": (0.1, 0.01)})
    monkeypatch.setattr(experiment, "SETTINGS", {
        "full": {"student": [{"temperature": 4.0, "alpha": 0.9}], "smoothing": [{"smoothing": 0.1}]},
        "small": {"twin": twins, "student": [{"max_lr": 0.1, "temperature": 4.0}], "smoothing": [{"max_lr": 0.1, "smoothing": 0.1}]}})
    monkeypatch.setattr(experiment, "accuracy", lambda net, split: accuracy(net, data.Split(split.images[:100], split.labels[:100])))
    with pytest.raises(ValueError, match="lacks the training (rate-full|student-small) 0, by which this one is chosen"):
        experiment.run(f"{part}-student", 0, tmp_path, shorter=500)
    for stage in experiment.STAGES[part]:
        for name, number in experiment.names(stage):
            if stage != part or number == 0 and name != "thousand":
                experiment.run(name, number, tmp_path, shorter=500 if part == "full" else 30)
    (tmp_path / "records").mkdir()
    experiment.collect(part, tmp_path, tmp_path / "records")
    record = runs.load(f"distillation_{part}", tmp_path / "records")
    rates = {row["max_lr"]: row["correct"] for row in record["choose"] if row["arm"] == "twin"}
    assert rates[record["chosen"]["twin"]["max_lr"]] == max(rates.values()) and len(rates) == 2
    assert record["chosen"]["student"]["temperature"] == 4.0
    assert {(row["arm"], row["seed"]) for row in record["rows"]} >= {(arm, 0) for arm in experiment.ARMS}
    assert (tmp_path / "records" / "distillation_twin.safetensors").exists() == (part == "full")


@pytest.mark.parametrize("arguments", [["list"], ["list", "x"], ["run", "full-twin"], ["run", "x", "0"], ["collect"], ["unseen", "1"]])
def test_the_experiment_s_command_line_refuses_what_it_does_not_know(arguments):
    with pytest.raises(SystemExit):
        experiment.main(arguments)


def test_the_records_were_made_with_the_committed_teacher_and_their_choices_are_the_best_on_validation(record, part):
    assert record["teacher_sha256"] == zoo.record("resnet")["sha256"]
    tries = {}
    for arm, setting in record["chosen"].items():
        rows = [row for row in record["choose"] if row["arm"] == arm]
        chosen = [row for row in rows if all(row.get(key, value) == value for key, value in setting.items())]
        assert len(chosen) == 1 and chosen[0]["correct"] == max(row["correct"] for row in rows)
        tries[arm] = len(rows)
    assert tries["student"] == tries["smoothing"] and all(row["images"] == 5000 for row in record["choose"])
    if part == "full":
        rates = [row["correct"] for row in record["choose"] if row["arm"] == "twin"]
        assert max(rates) > rates[0] and max(rates) > rates[-1]                             # the best rate lies inside those tried
    else:
        assert tries["twin"] >= tries["student"]


def test_every_arm_has_the_same_seeds_and_all_test_images(record):
    seeds = [by_arm(record, arm).keys() for arm in experiment.ARMS]
    assert seeds[0] == seeds[1] == seeds[2] and len(seeds[0]) == 3
    assert all(row["result"].n == 10_000 for row in record["rows"])


def test_students_are_ahead_of_twins_and_of_label_smoothing_and_more_so_with_few_images(record, part):
    twins, smoothed, students = (list(by_arm(record, arm).values()) for arm in experiment.ARMS)
    for others in (twins, smoothed):
        found = over_seeds(others, students)
        assert found.agree and (1.5 < found.mean < 2.5 if part == "small" else 0.5 < found.mean < 1)     # as notebook 10 says
    assert not over_seeds(twins, smoothed).agree


def test_student_and_twin_are_the_networks_of_the_record():
    record, (images, labels) = runs.load("distillation_full"), data.load("test")
    for arm in ("student", "twin"):
        net = runs.load_model(f"distillation_{arm}", experiment.student(), record["models"][arm])
        again = accuracy(net, data.Split(images[:1000], labels[:1000])).correct
        assert (again != by_arm(record, arm)[0].correct[:1000]).sum() <= 4                  # another processor rounds otherwise


def test_a_class_never_shown_is_recognised_by_the_student_and_not_by_the_twin():
    record = runs.load("distillation_unseen")
    rows = {(row["missing"], row["arm"]): row for row in record["rows"]}
    assert all(rows[missing, "twin"]["recall_before"]["correct"] == 0 for missing in range(10))
    row = rows[experiment.UNSEEN, "student"]
    assert row["recall_after"]["images"] == 1000 and row["recall_after"]["result"].low > 0.5
    net = runs.load_model("distillation_unseen_student", experiment.student(), record["models"]["unseen_student"])
    net.fc.bias[experiment.UNSEEN] += row["bias"]
    images, labels = data.load("test")
    again = accuracy(net, data.Split(images[:1000], labels[:1000])).correct
    assert (again != row["after"]["result"].correct[:1000]).sum() <= 2


def test_without_batch_norm_a_hot_teacher_loses_every_student_and_a_mild_one_none():
    rows = {(row["max_lr"], row["arm"], row["seed"]): row["result"] for row in runs.load("distillation_runaway")["rows"]}
    hot, mild = experiment.RUNAWAY
    assert len(rows) == 12
    for seed in range(3):
        assert rows[hot, "student", seed].high < 0.11 and rows[hot, "twin", seed].low > 0.6
        assert rows[mild, "student", seed].low > 0.6 and rows[mild, "twin", seed].low > 0.6
    ahead = [mcnemar(rows[mild, "twin", seed], rows[mild, "student", seed]) for seed in range(3)]
    assert sum(pair.significant and pair.difference > 0 for pair in ahead) == 2           # as notebook 10 says
