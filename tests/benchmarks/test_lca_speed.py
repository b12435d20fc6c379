"""How fast the toy model trains, against what a user writes by hand; one thread, sampling and optimiser included.

Peers, one run at a time, contexts drawn by torch.multinomial, autograd, AdamW: (1) attention of every position to every
position; (2) of the last query alone, the fairer one. Ratios are of the time per step and run, within one process.
"""

import subprocess
import sys
import time

import pytest
import torch

from lcalens import LatentConcepts, LCAConfig, LCAForCausalLM, TrainConfig
from lcalens.lca.training.stack import Stack
from lcalens.lca.training.trainer import seed_words

AIMS = {64: (15, 5), 256: (180, 25), 1024: (3000, None)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds_of(*functions, least=0.3, rounds=5, most=60.0):
    """Seconds a call of each takes: the best of several groups, taken in turn, so that a busy moment hits all alike."""
    first = []
    for function in functions:
        function()
        start = time.perf_counter()
        function()
        first.append(time.perf_counter() - start)
    best = list(first)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            if first[i] > most / rounds:
                continue
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < least:
                function()
                calls += 1
            best[i] = min(best[i], (time.perf_counter() - start) / calls)
    return best


def timed(benchmark, *functions):
    """The same, under pytest-benchmark."""
    return benchmark.pedantic(lambda: seconds_of(*functions), rounds=1)


def by_hand(m, config, *, last_query):
    """A training step as one writes it: look-up, attention, autograd, AdamW; the same model and batch size."""
    concepts = LatentConcepts(m)
    model = LCAForCausalLM(config.model_config(m))
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    offsets = torch.arange(1 << m)
    p = concepts.offset_log_p.exp().float()[offsets[:, None] ^ offsets]
    pi = concepts.offset_log_pi.exp().float()[offsets[:, None] ^ offsets]

    def step():
        target = torch.randint(1 << m, (config.batch_size,))
        tokens = torch.multinomial(p[target], config.context_length - 1, replacement=True)
        tokens = torch.cat([tokens, torch.multinomial(pi[target], 1)], 1)
        embedded = model.embed(tokens)
        queries = model.attn.q(embedded[:, -1:] if last_query else embedded)
        pattern = (queries @ model.attn.k(embedded).mT * model.attn.scale).softmax(-1)
        looked = pattern @ embedded if last_query else pattern @ model.attn.v(embedded)
        recalled = model.attn.v(looked)[:, -1] if last_query else looked[:, -1]
        loss = torch.nn.functional.cross_entropy(recalled @ model.embed.weight.T, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def ours(m, config, runs):
    """The step that `train` takes, and its sampling alone."""
    concepts = LatentConcepts(m)
    models = [LCAForCausalLM(config.model_config(m)) for _ in range(runs)]
    stack = Stack(models, [config.lr] * runs, [config.weight_decay] * runs)
    log_counts = torch.arange(config.context_length + 1).float().log()
    shape, kept = (runs, config.batch_size), {}

    def draw():
        kept["step"] = kept.get("step", 0) + 1
        seeds = seed_words(range(runs), "train", kept["step"])
        kept["batch"] = concepts.sampler.counts(
            seeds, config.batch_size, config.context_length, weight=log_counts, into=kept.get("batch")
        )
        return kept["batch"]

    def step():
        batch = draw()
        stack.step(batch.counts.view(*shape, -1), batch.last.view(shape), batch.target.view(shape), 1.0)

    return step, draw


def show(capsys, benchmark, rows):
    benchmark.extra_info.update(rows)
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:58}{value:10.4g}" for name, value in rows.items()))


@pytest.mark.parametrize("length", AIMS)
def test_a_step_against_both_peers(benchmark, capsys, length):
    config = TrainConfig(length, 128, 64, batch_size=256)
    step, draw = ours(8, config, 1)
    peers = [by_hand(8, config, last_query=last) for last in (False, True)]
    seconds, drawing, full, last = timed(benchmark, step, draw, *peers)
    aim, fair_aim = AIMS[length]
    rows = {
        f"m=8 d=128 B=256 L={length}: lcalens, ms a step": 1e3 * seconds,
        "all positions, ms a step": 1e3 * full,
        "last query, ms a step": 1e3 * last,
        f"ratio over all positions (aim {aim})": full / seconds,
        f"ratio over the last query (aim {fair_aim or 'none'})": last / seconds,
        "sampling, share of a step (aim under 0.15)": drawing / seconds,
    }
    show(capsys, benchmark, rows)


def test_sixteen_small_runs_at_once(benchmark, capsys):
    runs, config = 16, TrainConfig(64, 32, 16, batch_size=128)
    step, draw = ours(5, config, runs)
    peers = [by_hand(5, config, last_query=last) for last in (False, True)]
    seconds, drawing, full, last, alone = timed(benchmark, step, draw, *peers, ours(5, config, 1)[0])
    rows = {
        "m=5 d=32 B=128 L=64, 16 runs: lcalens, ms a step of all": 1e3 * seconds,
        "all positions, ms a step of one": 1e3 * full,
        "ratio over all positions, per run (aim 80)": full * runs / seconds,
        "ratio over the last query, per run": last * runs / seconds,
        "ratio over our own runs one by one": alone * runs / seconds,
        "sampling, share of a step (aim under 0.15)": drawing / seconds,
    }
    show(capsys, benchmark, rows)


def matmul_work(config, m):
    """Floating-point operations of a step's matrix products, as they are done: two for each product and sum.

    Six of batch x vocabulary x d (two forward, four back), three of batch x vocabulary x d_a, three of batch x d x d,
    six of vocabulary x d x d_a.
    """
    batch, vocab, d, head = config.batch_size, 1 << m, config.d_model, config.d_head
    pairs = batch * vocab * (6 * d + 3 * head)
    return 2 * (pairs + 3 * batch * d * d + 6 * vocab * d * head)


def test_share_of_the_matrix_product_rate(benchmark, capsys):
    config = TrainConfig(64, 128, 64, batch_size=512)
    step, _ = ours(8, config, 1)
    a, b = torch.randn(2, 2048, 2048)
    into = torch.empty(2048, 2048)
    seconds, product = timed(benchmark, step, lambda: torch.mm(a, b, out=into))
    peak, work = 2 * 2048**3 / product, matmul_work(config, 8)
    rows = {
        "m=8 d=128 d_a=64 B=512: lcalens, ms a step": 1e3 * seconds,
        "matrix products in a step, GFLOP": work / 1e9,
        "this machine's rate at 2048 x 2048, GFLOP/s": peak / 1e9,
        "share of that rate (aim 0.7)": work / seconds / peak,
    }
    show(capsys, benchmark, rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux's /proc")
def test_memory_at_twelve_bits(benchmark, capsys):
    code = """
import torch
from lcalens import LatentConcepts, TrainConfig, train
runs = train(LatentConcepts(12), TrainConfig(128, 128, 64, batch_size=512, steps=4), seeds=(0,), progress=False)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024**2)
"""

    def peak():
        command = [sys.executable, "-W", "ignore", "-c", code]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    gigabytes = benchmark.pedantic(peak, rounds=1)
    assert gigabytes < 4
    show(capsys, benchmark, {"m=12 d=128 B=512: peak memory of the whole process, GiB (aim 4)": gigabytes})


def test_evaluation_during_training(benchmark, capsys, monkeypatch):
    from lcalens import train
    from lcalens.lca.training.trainer import Trainer

    spent, evaluate = [], Trainer._evaluate

    def clocked(self, row, step):
        start = time.perf_counter()
        evaluate(self, row, step)
        spent.append(time.perf_counter() - start)

    monkeypatch.setattr(Trainer, "_evaluate", clocked)
    config = TrainConfig(64, 128, 64, batch_size=256, steps=1000)
    start = time.perf_counter()
    benchmark.pedantic(train, (LatentConcepts(8), config), {"seeds": (0,), "progress": False}, rounds=1)
    whole = time.perf_counter() - start
    show(capsys, benchmark, {"evaluation, share of a training (aim under 0.02)": sum(spent) / whole})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_step_on_one_gpu(benchmark, capsys):
    config = TrainConfig(256, 128, 64, batch_size=4096)
    concepts, device = LatentConcepts(10), torch.device("cuda")
    model = LCAForCausalLM(LCAConfig(m=10, d_model=128, d_head=64)).to(device)
    stack = Stack([model], [config.lr], [config.weight_decay])
    log_counts = torch.arange(config.context_length + 1, device=device).float().log()

    def step():
        seeds = seed_words((0,), "train", 0).to(device)
        batch = concepts.sampler.counts(seeds, config.batch_size, config.context_length, weight=log_counts)
        stack.step(batch.counts[None], batch.last[None], batch.target[None], 1.0)
        torch.cuda.synchronize()

    (seconds,) = timed(benchmark, step)
    show(capsys, benchmark, {"m=10 B=4096 on one GPU, ms a step": 1e3 * seconds})
