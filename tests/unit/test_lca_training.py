import numpy as np
import pytest
import torch
from matplotlib import pyplot

from lcalens import LatentConcepts, Result, TrainConfig, train
from lcalens.core.cells import CellStore
from lcalens.core.errors import LcalensError
from lcalens.lca.summaries import attention_pattern, gram
from lcalens.lca.training.stack import Stack
from lcalens.lca.training.trainer import SAMPLES, Trainer, seed_words, start_model
from lcalens.lca.world import bayes

WORLD = LatentConcepts(4)
QUICK = TrainConfig(32, 8, 8, batch_size=64, steps=120)


def quick(config=QUICK, **options):
    return train(WORLD, config, **({"seeds": (0, 1), "progress": False} | options))


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@pytest.fixture(scope="module")
def trained():
    return train(WORLD, TrainConfig(64, 16, 16, batch_size=256, steps=600), seeds=range(3), progress=False)


def test_training_comes_near_bayes_and_never_above_it(trained):
    error = 3 * np.sqrt(0.25 / SAMPLES)
    for run in trained:
        assert run.accuracy > 0.9 * run.bayes
        assert run.accuracy <= run.bayes + error
        assert run.diverged is None


def test_the_final_accuracy_is_that_of_the_model_on_fresh_contexts(trained):
    tokens, target = WORLD.sample(20_000, 64, torch.Generator().manual_seed(3))
    for run in trained:
        logits = run.model(tokens, logits_to_keep=1).logits[:, -1]
        again = (logits.argmax(-1) == target).double().mean().item()
        assert again == pytest.approx(run.accuracy, abs=5 * np.sqrt(0.25 / SAMPLES))


def test_bayes_is_that_of_the_same_contexts(trained):
    run = trained[0]
    drawn = WORLD.sampler.counts(seed_words([run.seed], "final", 0), SAMPLES, 64)
    assert run.bayes == pytest.approx(bayes.bayes_accuracy(WORLD, *drawn))
    right = run.model.from_counts(drawn.counts, drawn.last).argmax(-1) == drawn.target
    # A few contexts may be within rounding of a tie.
    assert run.accuracy == pytest.approx(right.double().mean().item(), abs=3 / SAMPLES)


def test_runs_of_one_stack_are_those_trained_alone():
    together = quick(QUICK.grid(lr=(0.01, 0.03)), seeds=range(3))
    for run in together:
        alone = quick(run.config, seeds=(run.seed,))[0]
        torch.testing.assert_close(weights(run), weights(alone), rtol=1e-3, atol=1e-4)
        assert run.bayes == alone.bayes


def test_seeds_differ_and_repeat():
    first, again, other = quick(seeds=(5,))[0], quick(seeds=(5,))[0], quick(seeds=(6,))[0]
    assert torch.equal(weights(first), weights(again))
    assert not torch.allclose(weights(first), weights(other))


def test_every_step_has_its_own_contexts():
    words = torch.cat([seed_words((0, 1), purpose, step) for purpose in ("train", "evaluate") for step in range(50)])
    assert len(words.unique()) == len(words)


@pytest.mark.parametrize("part", ["embedding", "value", "attention"])
def test_what_is_frozen_does_not_move(part):
    (run,) = quick(TrainConfig(32, 8, 8, batch_size=64, steps=60, **{f"train_{part}": False}), seeds=(0,))
    before = start_model(WORLD, run.config, 0)
    named = {"embedding": ("embed",), "value": ("attn.v",), "attention": ("attn.q", "attn.k")}
    for name, weight in run.model.named_parameters():
        frozen = name.removesuffix(".weight") in named[part]
        assert torch.equal(weight, dict(before.named_parameters())[name]) == frozen


def test_the_identity_stays_the_identity():
    (run,) = quick(TrainConfig(32, 8, 8, batch_size=64, steps=60, value="identity", train_value=False), seeds=(0,))
    assert torch.equal(run.model.attn.v.weight, torch.eye(8))


def test_history_begins_before_the_first_step_and_ends_after_the_last():
    (run,) = quick(seeds=(0,))
    assert run.history["step"].tolist() == [0, 40, 80, 120]
    assert np.isnan(run.history["loss"][0])
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[1] < np.log(16) + 0.5
    assert run.history["accuracy"].iloc[-1] > run.history["accuracy"].iloc[0]


def test_a_diverging_run_stops_alone(tmp_path):
    configs = QUICK.grid(lr=(0.03, 1e30))
    runs = quick(configs, out=tmp_path)
    for run in runs:
        if run.config.lr == 0.03:
            assert run.diverged is None
            alone = quick(run.config, seeds=(run.seed,))[0]
            torch.testing.assert_close(weights(run), weights(alone), rtol=1e-3, atol=1e-4)
        else:
            assert run.diverged is not None
            assert np.isnan(run.accuracy)
            assert (run.history["step"] < run.diverged).all()
    again = quick(configs, out=tmp_path)
    assert [run.diverged for run in again] == [run.diverged for run in runs]


def test_a_second_call_computes_only_what_is_missing(tmp_path, monkeypatch):
    first = quick(out=tmp_path)
    trained = []
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, c, plan, *rest: trained.extend(plan) or original(self, c, plan, *rest)
    )
    again = quick(seeds=(0, 1, 2), out=tmp_path)
    assert [seed for _, seed in trained] == [2]
    for old, new in zip(first, again, strict=False):
        assert torch.equal(weights(old), weights(new))
        assert (old.accuracy, old.bayes) == (new.accuracy, new.bayes)
        assert old.history.equals(new.history)


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 40, 41, 119])
def test_a_run_stopped_at_any_step_ends_bit_identical(tmp_path, monkeypatch, at):
    whole = quick(QUICK.grid(lr=(0.01, 0.03)))
    contexts = Trainer._contexts

    def stop(self, purpose, step):
        if purpose == "train" and step == at:
            raise _KilledError
        return contexts(self, purpose, step)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_contexts", stop)
        with pytest.raises(_KilledError):
            quick(QUICK.grid(lr=(0.01, 0.03)), out=tmp_path, checkpoint_seconds=0.0)
    steps = []
    monkeypatch.setattr(
        Trainer, "_contexts", lambda self, purpose, step: steps.append(step) or contexts(self, purpose, step)
    )
    resumed = quick(QUICK.grid(lr=(0.01, 0.03)), out=tmp_path)
    assert min(steps) == at
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(weights(one), weights(other))
        assert one.history.equals(other.history)
        assert one.accuracy == other.accuracy


def test_a_run_stopped_while_it_is_written_down_is_not_trained_again(tmp_path, monkeypatch):
    whole, put = quick(seeds=range(3)), CellStore.put

    def stop(self, key, arrays):
        put(self, key, arrays)
        if "final_accuracy" in arrays:
            raise _KilledError

    with monkeypatch.context() as patched:
        patched.setattr(CellStore, "put", stop)
        with pytest.raises(_KilledError):
            quick(seeds=range(3), out=tmp_path)
    monkeypatch.setattr(Stack, "step", None)
    for one, other in zip(whole, quick(seeds=range(3), out=tmp_path), strict=True):
        assert torch.equal(weights(one), weights(other))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_other_data_are_other_runs(tmp_path):
    one = quick(out=tmp_path)[0]
    other = train(LatentConcepts(4, beta=0.5), QUICK, seeds=(0,), out=tmp_path, progress=False)[0]
    assert not torch.equal(weights(one), weights(other))


def test_progress_shows_bayes_beside_the_accuracy():
    told = []
    quick(progress=lambda done, total, what: told.append((done, total, what)))
    assert told[-1][:2] == (240, 240)
    assert all("accuracy" in what and "Bayes" in what for _, _, what in told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_a_grid_has_every_combination_once():
    configs = QUICK.grid(lr=(0.01, 0.02), d_model=(8, 16))
    assert {(config.lr, config.d_model) for config in configs} == {(a, b) for a in (0.01, 0.02) for b in (8, 16)}
    assert len(quick(configs, seeds=(0,))) == 4
    with pytest.raises(LcalensError, match="rate"):
        QUICK.grid(rate=(1,))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    quick(seeds=(0,))
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_show_themselves(trained, tmp_path):
    result = trained.result
    assert {"runs", "accuracy", "accuracy_low", "accuracy_high", "bayes"} <= set(result.summary)
    accuracies = [run.accuracy for run in trained]
    assert result.summary["accuracy"][0] == pytest.approx(np.mean(accuracies))
    half = 4.302653 * np.std(accuracies, ddof=1) / np.sqrt(3)  # Student's t at 0.975 with two degrees of freedom
    assert result.summary["accuracy_high"][0] - result.summary["accuracy"][0] == pytest.approx(half, rel=1e-4)
    loaded = Result.load(result.save(tmp_path / "runs"))
    assert loaded.to_frame().equals(result.to_frame())
    assert len(trained.to_frame()) == len(trained) == len(trained[0:3])
    assert "bayes" in trained._repr_html_()


@pytest.mark.parametrize("made", [gram, attention_pattern])
def test_a_trained_model_shows_itself(trained, made, tmp_path):
    result = made(WORLD, trained[0].model)
    result.plot().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 3000
    assert pyplot.get_fignums() == []
    assert Result.load(result.save(tmp_path / "result")).to_frame().equals(result.to_frame())


def test_the_training_is_drawn_as_it_went(trained, tmp_path):
    figure = trained.plot()
    figure.savefig(tmp_path / "figure.png")
    curve, ceiling = figure.axes[0].lines
    values = trained.result.values
    np.testing.assert_allclose(curve.get_xdata(), values["step"][0])
    np.testing.assert_allclose(curve.get_ydata(), values["accuracy"].mean(0))
    assert ceiling.get_ydata()[0] == pytest.approx(np.mean([run.bayes for run in trained]))
    # A line for each recipe, to where its runs diverged.
    figure = quick(QUICK.grid(lr=(0.01, 0.02)) + QUICK.grid(lr=(1e30,))).plot()
    figure.savefig(tmp_path / "grid.png")
    assert [line.get_label() for line in figure.axes[0].lines] == ["lr 0.01", "lr 0.02", "lr 1e+30", "Bayes"]


def test_the_gram_matrix_and_the_pattern_are_drawn_as_measured(trained):
    result = gram(WORLD, trained[0].model)
    points, fit = result.plot().axes[0].lines[0], result.summary.iloc[0]
    np.testing.assert_allclose(points.get_ydata(), result.values["mean"])
    line = result.plot().axes[0].lines[-1]
    np.testing.assert_allclose(line.get_ydata(), fit["b"] - fit["a"] * np.array(result.axes["distance"]))
    result = attention_pattern(WORLD, trained[0].model)
    np.testing.assert_allclose(result.plot().axes[0].images[0].get_array(), result.values["attention"])


def test_the_attention_pattern_is_that_of_single_contexts(trained):
    model = trained[0].model
    pattern = attention_pattern(WORLD, model).values["attention"]
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    tokens = torch.arange(16)
    for last in (0, 7, 15):
        context = torch.cat([tokens[tokens != last], tokens[[last]]])[None]
        seen = model(context, output_attentions=True, logits_to_keep=1).attentions[0][0, 0, 0]
        expected = torch.empty(16)
        expected[context[0]] = seen.detach()
        np.testing.assert_allclose(pattern[last], expected, atol=1e-5)


def test_a_table_of_all_pairs_is_refused_where_it_is_huge():
    world = LatentConcepts(11)
    with pytest.raises(LcalensError, match="m: "):
        attention_pattern(world, start_model(world, TrainConfig(8, 4, 4), 0))
