"""LoRA merges, the linear arm is a logistic regression, and a killed search goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pathfm_kedro.encoders.adaptation import ArmTrials
from pathfm_kedro.encoders.adaptation_arms import ARMS, Search, Task
from pathfm_kedro.encoders.architectures import SmallCNN
from pathfm_kedro.encoders.lora import add_lora, lora_targets, merge_lora
from pathfm_kedro.encoders.torch_encoder import Network
from pathfm_kedro.encoders.training import InMemory

SEARCH = Search(
    trials=2, epochs=2, head_epochs=3, patience=5, batch=8,
    learning_rates=(1e-3, 1e-2), head_learning_rates=(1e-3, 1e-1), weight_decays=(1e-5, 1e-3),
)  # fmt: skip
PREPARED = {"input_pixels": 16, "mean": [0.5] * 3, "std": [0.2] * 3}


def network(seed=0, model=SmallCNN):
    torch.manual_seed(seed)
    return Network(model().eval().requires_grad_(False), "default", PREPARED, "", "")


def bright_and_dark(n=32, labels=2):
    rng = np.random.default_rng(0)
    targets = np.arange(n) % labels
    pixels = rng.integers(0, 60, (n, 16, 16, 3)) + 120 * targets[:, None, None, None] // labels
    rows = np.arange(n)
    return Task(pixels.astype(np.uint8), targets, rows[: n // 2], rows[n // 2 :], labels)


def adapted(arm, task, search=SEARCH, seed=0):
    start = network(seed)
    vectors = start.vectors(task.pixels, "cpu")
    return ArmTrials(ARMS[arm], task, search, start, vectors, seed, search.points(0), "cpu")


class Convolutions(nn.Module):
    """With stride and padding, a depthwise layer, and batch statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 6, 1),
        )  # fmt: skip

    def forward(self, batch):
        return self.layers(batch).mean(dim=(2, 3))


def test_lora_changes_convolutions_but_depthwise_ones_and_merging_changes_no_output():
    pytest.importorskip("peft")
    model = network(model=Convolutions).model
    assert lora_targets(model) == ["layers.0", "layers.4"]
    batch = torch.randn(4, 3, 16, 16)
    before = model(batch)
    add_lora(model, 4, 0)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(model(batch), before)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(generator=torch.Generator().manual_seed(len(name)))
    changed = model(batch)
    assert not torch.allclose(changed, before)
    merge_lora(model)
    torch.testing.assert_close(model(batch), changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arm", ["linear", "full", "lora_8"])
def test_only_what_the_arm_names_is_trained(arm):
    if arm.startswith("lora"):
        pytest.importorskip("peft")
    fit = adapted(arm, bright_and_dark())
    before = {k: v.clone() for k, v in fit.network.model.state_dict().items()}
    fit.fit(InMemory())
    after = {k.replace(".base_layer", ""): v for k, v in fit.network.model.state_dict().items()}
    moved = any(not torch.equal(after[k], v) for k, v in before.items())
    assert moved == (arm == "full")


def test_the_linear_arm_is_a_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    targets = np.arange(120) % 3
    vectors = rng.normal(size=(120, 4)) + 1.2 * np.eye(3, 4)[targets]
    rows = np.arange(120)
    task = Task(np.zeros((120, 1, 1, 3), np.uint8), targets, rows[:60], rows[60:], 3)
    search = replace(
        SEARCH, trials=1, head_epochs=150, patience=150, batch=60,
        head_learning_rates=(0.05, 0.05), weight_decays=(1e-9, 1e-9),
    )  # fmt: skip
    fit = ArmTrials(
        ARMS["linear"], task, search, network(), vectors.astype(np.float32), 0,
        search.points(0), "cpu",
    )  # fmt: skip
    # Selecting would stop early; the unpenalised solution is at the end of training.
    ours = replace(fit, task=replace(task, inner=rows[:60])).fit(InMemory()).logits(rows)
    scaled = StandardScaler().fit(vectors[:60]).transform(vectors)
    theirs = LogisticRegression(C=1e6, max_iter=1000).fit(scaled[:60], targets[:60])
    said = theirs.predict_proba(scaled)
    own = torch.softmax(torch.from_numpy(ours), 1).numpy()
    assert np.abs(own - said).max() < 0.05


def test_a_killed_search_gives_the_same_answer():
    class Killed(InMemory):
        left = 3

        def save(self, tensors, text):
            super().save(tensors, text)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    task = bright_and_dark()
    whole = adapted("full", task).fit(InMemory())
    state = Killed()
    with pytest.raises(KeyboardInterrupt):
        adapted("full", task).fit(state)
    again = adapted("full", task).fit(InMemory(state.saved))
    rows = np.arange(32)
    np.testing.assert_array_equal(again.logits(rows), whole.logits(rows))
    assert again.trials == whole.trials


def test_a_trial_that_diverges_is_recorded_and_not_kept():
    wild = replace(SEARCH, learning_rates=(1e30, 1e32), head_learning_rates=(1e30, 1e32), epochs=3)
    found = adapted("full", bright_and_dark(), wild).fit(InMemory())
    assert all(trial.diverged for trial in found.trials)
    assert found.kept is None
    assert np.isfinite(found.logits(np.arange(4))).all()


def test_trials_are_the_same_points_for_every_arm_and_the_first_is_the_middle():
    points = SEARCH.points(3)
    assert points[0].tolist() == [0.5, 0.5]
    np.testing.assert_array_equal(points, SEARCH.points(3))
    rates = {arm: adapted(arm, bright_and_dark())._trial(0).rate for arm in ("full", "linear")}
    assert len(set(rates.values())) == 1
    assert rates["full"] == pytest.approx(np.sqrt(1e-3 * 1e-2))
