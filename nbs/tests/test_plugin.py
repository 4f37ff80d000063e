"The plug-in in two processes, compiled, and installed alone: what no cell of a notebook can check."

import inspect
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import jedi
import pytest

from pixelreg import SimilarityRegularizer

ROOT = Path(__file__).resolve().parents[2]
COMMON = """
import copy, sys, torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from pixelreg import SimilarityRegularizer
def parts(norm=False, k=4):
    torch.manual_seed(0)
    images = torch.rand(40, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3).double() # many pairs beyond the threshold
    x, y = torch.rand(6, 8, 1, 8, 8).double(), torch.randint(3, (6, 8))
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    make = lambda net, **kw: SimilarityRegularizer(net, images, ["2", "4"], alpha=.1, th=.5, pairs=k, **kw).double()
    return net, make, x, y
def optimizer(net, reg): return torch.optim.SGD([*net.parameters(), *reg.parameters()], lr=.01, momentum=.9)
"""


def group(tmp_path, code, n=2):
    "Run code in n processes of a gloo group, each with `rank`; what they printed"
    start = f"rank = int(sys.argv[1]); dist.init_process_group('gloo', init_method='file://{tmp_path}/group', rank=rank, world_size={n})\n"
    (tmp_path / "train.py").write_text(
        COMMON
        + start
        + code
        + "\nimport os, time; dist.barrier(); sys.stdout.flush(); time.sleep(.3); os._exit(0) # without gloo's own end, which now and then aborts\n"
    )
    env = os.environ | dict(
        OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    all_ = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "train.py"), str(rank)],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n)
    ]
    said = [p.communicate(timeout=120)[0] for p in all_]
    assert not any(p.returncode for p in all_), "\n".join(said)
    return said


def test_two_processes_train_what_one_would(tmp_path):
    "Weights, gamma and running means: equal on both ranks, and those of one process with the pairs of both; each rank draws its own"
    group(
        tmp_path,
        """
net, make, x, y = parts()
alone, reg_alone = copy.deepcopy(net), None
ddp = DistributedDataParallel(net)
reg = make(ddp)
opt, drawn = optimizer(net, reg), []
draw = reg.sampler.draw
reg.sampler.draw = lambda *which: drawn.append(draw(*which)) or drawn[-1]
for step in range(6):
    half = x[step][4*rank:4*rank+4], y[step][4*rank:4*rank+4]
    opt.zero_grad(); (F.cross_entropy(ddp(half[0]), half[1])+reg()).backward(); opt.step()
mine = torch.cat([p.flatten() for p in [*net.parameters(), *reg.similarity.state_dict().values()]]).detach()
both = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
assert torch.equal(*both), (both[0]-both[1]).abs().max()
pairs = torch.stack([j*(j-1)//2+i for i, j, _ in drawn]) # their numbers, step by step
other = [torch.empty_like(pairs) for _ in range(2)]
dist.all_gather(other, pairs)
assert not set(other[0].flatten().tolist()) & set(other[1].flatten().tolist()), "both ranks drew the same pair"
_, make, _, _ = parts(k=8)
reg = make(alone, sync=False)
opt = optimizer(alone, reg)
for step in range(6): opt.zero_grad(); (F.cross_entropy(alone(x[step]), y[step])+reg()).backward(); opt.step()
one = torch.cat([p.flatten() for p in [*alone.parameters(), *reg.similarity.state_dict().values()]]).detach()
assert (one-mine).abs().max() < 1e-9*one.abs().max(), (one-mine).abs().max()
assert reg.similarity.logits.abs().min() > 1e-6 # gamma moved
torch.manual_seed(0)
assert (one[:36]-parts()[0][0].weight.flatten()[:36]).abs().max() > 1e-3 # and the network
""",
    )


def test_accumulated_and_batch_normed(tmp_path):
    "With batch norm and two micro-batches a step of which one is not synchronized the ranks stay equal"
    group(
        tmp_path,
        """
net, make, x, y = parts(norm=True)
ddp = DistributedDataParallel(net)
reg = make(ddp)
opt = optimizer(net, reg)
for step in range(4):
    opt.zero_grad()
    a, b = x[step][4*rank:4*rank+4].split(2)
    with ddp.no_sync(): (ddp(a).square().mean()+reg()).backward()
    (ddp(b).square().mean()+reg()).backward()
    opt.step()
mine = torch.cat([p.flatten() for p in [*net.parameters(), *reg.similarity.state_dict().values()]]).detach()
both = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
assert torch.equal(*both)
""",
    )


def test_two_backwards_a_step_are_refused(tmp_path):
    "The second would leave each rank with gradients of its own; so would a network that nobody wrapped"
    said = group(
        tmp_path,
        """
for wrap in (DistributedDataParallel, lambda net: net):
    net, make, x, y = parts()
    model = wrap(net)
    reg = make(model)
    opt = optimizer(net, reg)
    try:
        for step in range(3):
            opt.zero_grad()
            F.cross_entropy(model(x[step][4*rank:4*rank+4]), y[step][4*rank:4*rank+4]).backward()
            reg().backward()
            opt.step()
    except RuntimeError as e: print("refused at step", step, e)
reg = make(net, sync=False) # each rank for itself
print(reg().isfinite().item())
""",
    )
    for text in said:
        assert (
            text.count(
                "refused at step 1 the weights differ between the ranks: call one backward a step"
            )
            == 2
        ), text
        assert text.rstrip().endswith("True")


def test_spawned_copies_draw_the_same_pairs(tmp_path):
    "As ddp_spawn does: pickled into new processes"
    (tmp_path / "spawn.py").write_text(
        COMMON
        + """
def work(rank, reg, pairs): # the loss would differ: on a CPU both share the memory of the running means
    assert [v.tolist() for v in reg.sampler.draw()] == pairs
    assert reg().isfinite()
if __name__ == "__main__":
    net, make, _, _ = parts()
    reg = make(net)
    for _ in range(3): reg()
    torch.multiprocessing.spawn(work, (copy.deepcopy(reg), [v.tolist() for v in reg.sampler.draw()]), nprocs=2)
"""
    )
    subprocess.run(
        [sys.executable, str(tmp_path / "spawn.py")],
        check=True,
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )


def test_the_plug_in_needs_torch_numpy_and_jaxtyping_alone():
    "What `pip install .` brings: with everything else out of reach the plug-in trains, and what needs more says what is missing"
    code = (
        """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    gone = ("torchvision", "scipy", "pandas", "matplotlib", "skimage", "foolbox", "safetensors", "cloudpickle", "filelock", "platformdirs", "tqdm", "PIL", "lightning", "pytorch_lightning")
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.gone: raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Missing())
"""
        + COMMON
        + """
from pixelreg import suggest_layers, SimilarityCallback
net, make, _, _ = parts()
reg = make(net)
reg().backward(); print(reg, reg.evaluate(pairs=20))
try: from pixelreg import evaluate
except ImportError as e: print(e)
"""
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert "pip install 'pixelreg[attacks]'" in said and "L_sim" in said


def bad_inputs():
    "What people give by mistake -> what must be said of it, in images and in options"
    import torch

    x = (
        torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    whole = (255 * x).round()
    whole.view(-1)[:2] = torch.tensor([0.0, 255.0])
    images = {
        "images must be uint8, or floats in [0, 1], got floats from 0 to 1.5;": (
            x * 1.5 / x.max()
        ).index_put((torch.tensor([0]),), torch.tensor(0.0)),
        "got floats from -0.5 to": x - x.min() - 0.5,
        "got floats from 0 to 255, whole numbers: give them as uint8, or divided by 255": whole,
        "got floats from nan to nan": x * torch.nan,
        "images must be a tensor of at least 2 images (n, c, h, w), got shape (8, 8)": x[0, 0],
        "got shape (1, 1, 8, 8)": x[:1],
        "got a DataLoader": torch.utils.data.DataLoader(x),
    }
    images |= {
        f"images must be uint8, or floats in [0, 1], got {dtype}": whole.to(dtype)
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    }
    options = {
        "layers must be a list of layer names, got '2'": dict(layers="2"),
        "layers must name each layer once, got '2', which is '2' again": dict(layers=["2", "2"]),
        "got 'conv', which is not a layer": dict(layers=["conv"]),
        "pairs must be a whole number >= 1, got 2.5": dict(pairs=2.5),
        "pairs must be a whole number >= 1, got True": dict(pairs=True),
        "pairs must be a whole number >= 1, got 0": dict(pairs=0),
        "th must be smaller, got 0.9999: no pair of these 20 images reaches it": dict(th=0.9999),
        "th must be in (0, 1), got 1.5": dict(th=1.5),
        "alpha must be a finite number >= 0, got -1": dict(alpha=-1),
    }
    return x, images, options


def test_bad_input_is_refused_by_name():
    import torch
    from torch import nn

    from pixelreg import SimilarityRegularizer, evaluate, suggest_layers

    def net(c=1):
        return nn.Sequential(
            nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )

    model, (x, images, options) = net(), bad_inputs()

    def refused(said, f):
        with pytest.raises(ValueError) as e:
            f()
        assert said in str(e.value), (said, e.value)

    for said, bad in images.items():
        refused(said, lambda: SimilarityRegularizer(model, bad, ["2"], th=0.3, pairs=4))
        refused(said, lambda: suggest_layers(model, bad))
        if len(bad) > 1:  # a single image can be evaluated, though no pair be made of it
            refused("images must be", lambda: evaluate(model, bad, torch.zeros(len(bad)).long()))
    for said, bad in options.items():
        refused(
            said,
            lambda: SimilarityRegularizer(model, x, **(dict(layers=["2"], th=0.3, pairs=4) | bad)),
        )
    reg = SimilarityRegularizer(model, x, ["2"], th=0.3, pairs=4)
    refused(
        "state must be of these images",
        lambda: SimilarityRegularizer(model, x.flip(0), ["2"], th=0.3, pairs=4).load_state_dict(
            reg.state_dict()
        ),
    )
    SimilarityRegularizer(model, x, ["2"], th=0.3, pairs=4).load_state_dict(
        reg.state_dict()
    )  # of the same images it is taken
    grey = (
        "images must have 3 channels for this Sequential, got 1; give images.expand(-1, 3, -1, -1)"
    )
    refused(grey, lambda: SimilarityRegularizer(net(3), x, ["2"], th=0.3, pairs=4))
    refused(grey, lambda: evaluate(net(3), x, torch.zeros(20).long()))
    refused(
        "images must have 1 channel for this Sequential, got 3",
        lambda: SimilarityRegularizer(model, x.expand(-1, 3, -1, -1), ["2"], th=0.3, pairs=4),
    )
    for dtype in (
        torch.uint8,
        torch.float16,
        torch.bfloat16,
        torch.float64,
    ):  # what is right is not refused
        good = (255 * x).byte() if dtype is torch.uint8 else x.to(dtype)
        assert SimilarityRegularizer(model, good, ["2"], th=0.3, pairs=4)().isfinite(), dtype


def test_a_compiled_step_compiles_once():
    "Three training steps of a compiled network with the regularizer: no recompilation, the gradients of the plain network, and gamma moves"
    code = (
        COMMON
        + """
net, make, x, y = parts(norm=True)
from torch._dynamo.backends.registry import lookup_backend
plain, seen, graphs = copy.deepcopy(net), [], []
def counted(graph, inputs): graphs.append(graph); return lookup_backend("aot_eager")(graph, inputs)
for network, model in ((plain, plain), (net, torch.compile(net, backend=counted, fullgraph=True))):
    reg = make(model)
    opt = optimizer(model, reg)
    for step in range(3):
        with torch._dynamo.config.patch(error_on_recompile=step > 0): loss = F.cross_entropy(model(x[step]), y[step])+reg()
        opt.zero_grad(); loss.backward(); opt.step()
    seen.append(torch.cat([p.detach().flatten() for p in [*network.parameters(), *reg.parameters()]]))
assert (seen[0]-seen[1]).abs().max() < 1e-9*seen[0].abs().max(), (seen[0]-seen[1]).abs().max()
assert reg.similarity.logits.abs().min() > 1e-6
assert len(graphs) == 1, len(graphs)
"""
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )


@pytest.mark.skipif(
    not os.environ.get("PIXELREG_EXTRA_TESTS"),
    reason="compiles for minutes: set PIXELREG_EXTRA_TESTS=1",
)
def test_compiled_by_inductor(tmp_path):
    "Compiled in full, under autocast: one compilation, and the losses of the plain network"
    code = (
        COMMON
        + """
net, make, x, y = parts(norm=True)
net = net.float()
plain = copy.deepcopy(net)
losses = []
for model in (plain, torch.compile(net)):
    reg, x_ = make(model).float(), x.float()
    opt = optimizer(model, reg)
    for step in range(3):
        with torch._dynamo.config.patch(error_on_recompile=step > 0), torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x_[step]).float(), y[step])+reg()
        opt.zero_grad(); loss.backward(); opt.step()
        losses.append(loss.item())
print(losses)
assert all(abs(a/b-1) < .1 for a, b in zip(losses[:3], losses[3:])), losses
"""
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )


LIGHTNING = """
import copy, sys, torch, warnings
import lightning.pytorch as L
from torch import nn
from pixelreg import SimilarityCallback, SimilarityRegularizer
warnings.filterwarnings("ignore")
class Lit(L.LightningModule):
    def __init__(self): super().__init__(); torch.manual_seed(0); self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    def forward(self, x): return self.net(x)
    def training_step(self, batch, i): return nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=.01)
class Own(Lit): # the regularizer as a line of one's own
    def __init__(self, images): super().__init__(); self.reg = SimilarityRegularizer(self.net, images, layers=["0", "2"], alpha=.1, th=.5, pairs=4)
    def training_step(self, batch, i): return super().training_step(batch, i)+self.reg()
torch.manual_seed(1)
images = torch.rand(40, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
data = torch.utils.data.TensorDataset(torch.rand(48, 1, 8, 8), torch.arange(48)%3)
loader = torch.utils.data.DataLoader(data, 8)
def callback(network="net"): return SimilarityCallback(images, network, layers=["0", "2"], alpha=.1, th=.5, pairs=4)
def trainer(**kw): return L.Trainer(**(dict(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)|kw))
def weights(m): return torch.cat([p.detach().flatten() for p in m.net.parameters()])
"""


def lightning(tmp_path, code):
    "Run code with Lightning in a process of its own"
    pytest.importorskip("lightning", reason="lightning is not installed: pip install lightning")
    (tmp_path / "fit.py").write_text(
        LIGHTNING
        + "if __name__ == '__main__':\n"
        + "".join(f"    {line}\n" for line in code.strip().splitlines())
    )
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "fit.py")],
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=path, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def test_lightning_callback_adds_the_loss(tmp_path):
    "The same weights as with the regularizer in the module's own training_step; averaged copies, checkpoints and a second fit go on"
    lightning(
        tmp_path,
        """
a, b, plain = Lit(), Own(images), Lit()
trainer(callbacks=[callback()]).fit(a, loader)
trainer().fit(b, loader); trainer().fit(plain, loader)
assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(plain))
assert a.similarity_regularizer.similarity.logits.any() and a.similarity_regularizer.sampler.position == 6
t = trainer(max_epochs=2, callbacks=[callback(), L.callbacks.WeightAveraging()])
t.fit(Lit(), loader)
t.save_checkpoint("two.ckpt")
once = trainer(max_epochs=1, callbacks=[callback()]); once.fit(Lit(), loader); once.save_checkpoint("one.ckpt")
whole, resumed = Lit(), Lit()
trainer(max_epochs=2, callbacks=[callback()]).fit(whole, loader)
trainer(max_epochs=2, callbacks=[callback()]).fit(resumed, loader, ckpt_path="one.ckpt")
assert torch.equal(weights(whole), weights(resumed)) and resumed.similarity_regularizer.sampler.position == 12
""",
    )


def test_lightning_in_two_processes(tmp_path):
    "ddp_spawn: the module is pickled with its callback, each rank draws its own pairs, and the ranks stay equal"
    lightning(
        tmp_path,
        """
m = Lit()
trainer(strategy="ddp_spawn", devices=2, callbacks=[callback()]).fit(m, loader) # assert_in_sync speaks up where weights differ
b = Own(images)
trainer(strategy="ddp_spawn", devices=2).fit(b, loader)
assert (weights(m)-weights(b)).abs().max() < 1e-6
assert (weights(m)-weights(Lit())).abs().max() > 1e-4
""",
    )


def test_lightning_checkpoints_load_with_and_without_the_callback(tmp_path):
    "load_from_checkpoint, test and resume without it; resumed with it to the bit, optimizer's momentum of the layer weights included"
    lightning(
        tmp_path,
        """
class Momentum(Lit):
    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), lr=.01)
    def test_step(self, batch, i): self.log("loss", super().training_step(batch, i))
def everything(m): return torch.cat([v.detach().double().flatten() for v in [*m.state_dict().values(), *m.similarity_regularizer.similarity.state_dict().values()]])
once, whole, resumed = Momentum(), Momentum(), Momentum()
t = trainer(max_epochs=1, callbacks=[callback()])
t.fit(once, loader)
t.save_checkpoint("one.ckpt")
assert set(once.state_dict()) == set(Momentum().state_dict())
state = torch.load("one.ckpt", weights_only=False)
assert not any("similarity" in key for key in state["state_dict"]) and "similarity" in state["callbacks"]["SimilarityCallback"]
assert once.similarity_regularizer.similarity.logits.any()
loaded = Momentum.load_from_checkpoint("one.ckpt")
assert torch.equal(weights(loaded), weights(once))
trainer().test(Momentum(), loader, ckpt_path="one.ckpt")
trainer(callbacks=[callback()]).test(Momentum(), loader, ckpt_path="one.ckpt")
plain = Momentum()
trainer(max_epochs=2).fit(plain, loader, ckpt_path="one.ckpt")
assert not hasattr(plain, "similarity_regularizer") and not torch.equal(weights(plain), weights(once))
trainer(max_epochs=2, callbacks=[callback()]).fit(whole, loader)
trainer(max_epochs=2, callbacks=[callback()]).fit(resumed, loader, ckpt_path="one.ckpt")
assert torch.equal(everything(whole), everything(resumed)) and resumed.similarity_regularizer.sampler.position == 12
assert whole.similarity_regularizer.gamma != once.similarity_regularizer.gamma
""",
    )


def test_activation_checkpointing_is_refused_where_it_cuts_gradients():
    "Reentrant, half of it, forwards without gradients and inference mode, frozen below: refused by the layer's name; the others train"
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    from pixelreg import SimilarityRegularizer

    class Net(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how, self.stem, self.body, self.head = (
                how,
                nn.Conv2d(1, 4, 3),
                nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh()),
                nn.Linear(4, 3),
            )

        def forward(self, x):
            if self.how == "whole":
                x = checkpoint(lambda x: self.body(self.stem(x)), x, use_reentrant=True)
            elif self.how in (True, False):
                x = checkpoint(self.body, self.stem(x), use_reentrant=self.how)
            elif self.how == "plain":
                x = self.body(self.stem(x))
            else:
                with self.how():
                    x = self.body(self.stem(x))
            return self.head(x.mean((2, 3)))

    x = (
        torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )

    def gradients(how, layers=("stem", "body"), frozen=(), merge=False):
        torch.manual_seed(0)
        net = Net(how)
        for part in frozen:
            getattr(net, part).requires_grad_(False)
        reg = SimilarityRegularizer(net, x, layers, th=0.3, pairs=4, merge=merge)
        with torch.no_grad():
            assert reg().isfinite()  # not trained: no complaint
        reg.evaluate(8)
        reg().backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    def refused(said, *args, **kw):
        with pytest.raises(ValueError, match="use_reentrant=False") as e:
            gradients(*args, **kw)
        assert f"got {said}, whose output needs no gradient" in str(e.value), e.value

    plain = gradients("plain")
    assert len(plain) == 6
    cut = gradients(False)
    assert cut.keys() == plain.keys() and all(
        torch.allclose(cut[k], plain[k], atol=1e-5) for k in plain
    )
    for merge in (False, True):
        refused("'body'", True, merge=merge)
        refused("'stem', 'body'", "whole", merge=merge)
        for off in (torch.no_grad, torch.inference_mode):
            refused("'stem', 'body'", off, merge=merge)
    refused("'stem'", "plain", ["stem"], ["stem"])
    refused("'stem', 'body'", "plain", frozen=["stem", "body"])
    assert gradients("plain", frozen=["stem"]).keys() == {
        k for k in plain if k.startswith("body")
    }  # frozen on purpose, beside one that is trained
    assert gradients("plain", ["body"], ["stem"]).keys() == {
        k for k in plain if k.startswith("body")
    }


def test_a_whole_step_compiles():
    "Forward of network and regularizer in one compiled function: the losses and gradients of the plain step"
    code = (
        COMMON
        + """
net, make, x, y = parts(norm=True)
seen = []
for compiled in (False, True):
    network = copy.deepcopy(net)
    reg = make(network)
    opt = optimizer(network, reg)
    def losses(x, y): return F.cross_entropy(network(x), y)+reg()
    if compiled: losses = torch.compile(losses, backend="eager")
    for step in range(3):
        loss = losses(x[step], y[step])
        opt.zero_grad(); loss.backward(); opt.step()
    seen.append(torch.cat([p.detach().flatten() for p in [*network.parameters(), *reg.parameters()]]))
    assert reg.sampler.position == 3
assert (seen[0]-seen[1]).abs().max() < 1e-9*seen[0].abs().max(), (seen[0]-seen[1]).abs().max()
assert reg.similarity.logits.abs().min() > 1e-6
"""
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )


def test_the_regularizer_follows_the_network():
    "A network on another device than the images: similarity, targets and loss are where the activations are"
    import torch
    from torch import nn

    from pixelreg import SimilarityRegularizer

    x = torch.rand(20, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to("meta")
    for sampling in ("uniform", "stratified"):
        reg = SimilarityRegularizer(
            net, x, ["0", "2"], th=0.3, pairs=4, sampling=sampling, preprocess=(0.5, 0.2)
        )
        loss = reg()  # as far as a device without values goes
        loss.backward()
        places = {
            loss.device,
            net[0].weight.grad.device,
            reg.similarity.logits.device,
            reg.similarity.mean_0.device,
        }
        assert places == {torch.device("meta")} and reg.images.device == torch.device("cpu")


def test_float64_is_not_asked_of_devices_without_it():
    "A stand-in for such a device: tensors that say they are on it, and that refuse float64"
    import torch

    from pixelreg.regularizer.distributed import _size
    from pixelreg.targets.similarity import pixel_embeddings

    mps, asked = torch.device("mps"), []

    class OnMps(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func == torch.Tensor.device.__get__:
                return mps
            if (
                func is torch.Tensor.cpu or func is torch.Tensor.to and "cpu" in args
            ):  # leaves the device
                asked.append(func)
                with torch._C.DisableTorchFunctionSubclass():
                    plain = args[0].as_subclass(torch.Tensor)
                    return (
                        plain.clone() if func is torch.Tensor.cpu else plain.to(*args[1:], **kwargs)
                    )
            args = (
                [torch.device("cpu") if a == mps else a for a in args]
                if func is torch.Tensor.to
                else args
            )
            out = super().__torch_function__(func, types, args, kwargs)
            if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
                raise TypeError("MPS has no float64")
            return out

    class Moves(torch.overrides.TorchFunctionMode):  # plain tensors that are moved to the device
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to and mps in args and type(args[0]) is torch.Tensor:
                assert args[0].dtype != torch.float64, "MPS has no float64"
                return args[0].clone().as_subclass(OnMps)
            return func(*args, **(kwargs or {}))

    x = torch.rand(20, 3, 8, 8)
    there = x.as_subclass(OnMps)
    with pytest.raises(TypeError):
        there.double()
    with pytest.raises(TypeError):
        there.mean(0, dtype=torch.float64)
    for mean in ("set", "own"):
        with Moves():
            rows = pixel_embeddings(there, mean)
        assert rows.tolist() == pixel_embeddings(x, mean).tolist()  # float64's sums, all the same
    assert asked
    with Moves():
        total = _size(there)
    assert abs(total.item() / x.double().sum().item() - 1) < 1e-6


def test_help_fits_two_screens_and_names_every_argument():
    text = pydoc.render_doc(SimilarityRegularizer, renderer=pydoc.plaintext)
    assert len(text.split("\n")) <= 100, len(text.split("\n"))
    described = inspect.getdoc(SimilarityRegularizer)
    for name in list(inspect.signature(SimilarityRegularizer).parameters):
        assert re.search(rf"^- {name}( \(.*\))?: \S", described, re.MULTILINE), name


def test_editors_find_the_public_names():
    "Completion and signatures as static tools see them, without importing the package"
    found = {c.name for c in jedi.Script("from pixelreg import Sim").complete()}
    assert {"SimilarityRegularizer", "SimilarityCallback"} <= found, found
    code = "from pixelreg import SimilarityRegularizer\nSimilarityRegularizer("
    [signature] = jedi.Script(code).get_signatures()
    assert "alpha: float=10.0" in [p.to_string().replace(" = ", "=") for p in signature.params], [
        p.to_string() for p in signature.params
    ]
    assert (ROOT / "pixelreg" / "py.typed").exists()


def test_the_script_of_the_oldest_torch_runs():
    "CI runs it with torch 2.4, the floor of pyproject.toml, and nothing else installed"
    script = ROOT / "nbs" / "tests" / "plug_in_alone.py"
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
