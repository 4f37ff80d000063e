"The plug-in with torch, numpy and jaxtyping alone: trains, evaluates, is saved and loaded. Run where nothing else is installed."

import sys

import torch
from torch import nn

from pixelreg import SimilarityRegularizer, suggest_layers

torch.manual_seed(0)
# coarse images: many pairs beyond the threshold
images = torch.rand(40, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
x, y = torch.rand(8, 1, 8, 8), torch.randint(3, (8,))
layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh()]
net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))
reg = SimilarityRegularizer(net, images, ["2", "4"], alpha=0.1, th=0.5, pairs=4)
opt = torch.optim.SGD([*net.parameters(), *reg.parameters()], lr=0.01)
before = reg.evaluate(20)
for _ in range(20):
    loss = nn.functional.cross_entropy(net(x), y) + reg()
    opt.zero_grad()
    loss.backward()
    opt.step()
after = reg.evaluate(20)
assert loss.isfinite() and after.loss < before.loss, (before, after)
state = reg.state_dict()
reg.load_state_dict(state)
assert list(suggest_layers(net, images)) == ["0", "1", "2", "3", "4"]
heavy = {"matplotlib", "pandas", "foolbox", "torchvision", "IPython", "scipy"} & {*sys.modules}
assert not heavy, heavy
print(f"torch {torch.__version__}: {before.loss:.2f} to {after.loss:.2f}")
