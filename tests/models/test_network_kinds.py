"""Networks as people have them, scripted, compiled, wrapped, hooked, checkpointed: each against plain torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import convlens
from convlens.errors import ModelError, UnsupportedModelError
from convlens.explain import ForwardPass, run, run_neurons
from convlens.features.embedder import torch_embedder
from convlens.inspection import layer_filters
from convlens.instrument import copy_of
from convlens.models import Classifier, load, pack, unpack
from convlens.types import Attribution, Neuron

# torch announces the end of TorchScript and of eager quantisation at each call.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*deprecated:{kind}") for kind in ("FutureWarning", "DeprecationWarning")
]
SIDE = 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.backbone(x)).flatten(1))


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def wrapped(module: nn.Module) -> Classifier:
    return convlens.wrap(module, size=SIDE)


def explained(classifier: Classifier, method: str, target: int = 2, **options: Any) -> Attribution:
    result = run(method, ForwardPass(classifier, images()), [target, target], options)
    assert isinstance(result, Attribution)
    return result


def logits_of(module: Callable[[Tensor], Tensor]) -> np.ndarray:
    with torch.no_grad():
        return module(torch.tensor(images())).float().numpy()


def saliency_of(module: Callable[[Tensor], Tensor], target: int = 2) -> np.ndarray:
    x = torch.tensor(images(), requires_grad=True)
    # Not the leaf itself, for a network may write into its input.
    return torch.autograd.grad(module(x * 1.0)[:, target].sum(), x)[0].numpy()


def occlusion_of(module: Callable[[Tensor], Tensor], target: int = 2) -> np.ndarray:
    """What each quarter of the image, at 0, takes from the score."""
    grid_N22 = np.zeros((2, 2, 2), np.float32)
    for row in range(2):
        for column in range(2):
            x = torch.tensor(images())
            x[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 0
            with torch.no_grad():
                grid_N22[:, row, column] = logits_of(module)[:, target] - module(x)[:, target].float().numpy()
    return grid_N22


def grad_cam_of(backbone: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor], target: int = 2) -> np.ndarray:
    maps = backbone(torch.tensor(images())).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(head(maps)[:, target].sum(), maps)
    return (gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1, keepdim=True).relu().float().numpy()


def head(net: Net) -> Callable[[Tensor], Tensor]:
    return lambda maps: net.fc(net.pool(maps).flatten(1))


def require_like_plain_torch(classifier: Classifier, module: Callable[[Tensor], Tensor]) -> None:
    np.testing.assert_allclose(ForwardPass(classifier, images()).logits_NK, logits_of(module), atol=1e-6)
    np.testing.assert_allclose(explained(classifier, "saliency").values_NCHW, saliency_of(module), atol=1e-6)
    occlusion = explained(classifier, "occlusion", window=8, stride=8)
    np.testing.assert_allclose(occlusion.extras["grid_NRQ"], occlusion_of(module), atol=1e-6)


# ---- wrappings, and functions in place of methods


def compiled_child(net: Net) -> nn.Module:
    net.backbone = torch.compile(net.backbone, backend="eager")
    return net


def compiled_in_place(net: Net) -> nn.Module:
    net.backbone.compile(backend="eager")
    net.compile(backend="eager")
    return net


def compiled_forward(net: Net) -> nn.Module:
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def forward_by_closure(net: Net) -> nn.Module:
    old = net.forward
    net.forward = lambda x: old(x) * 1.0
    return net


def forward_by_partial(net: Net) -> nn.Module:
    net.forward = functools.partial(Net.forward, net)
    return net


def parallel_child(net: Net) -> nn.Module:
    net.backbone = nn.DataParallel(net.backbone)
    return net


WRAPPINGS: dict[str, Callable[[Net], nn.Module]] = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "a compiled child": compiled_child,
    "Module.compile": compiled_in_place,
    "a compiled forward": compiled_forward,
    "a forward that closes over the module": forward_by_closure,
    "a partial forward": forward_by_partial,
    "DataParallel": nn.DataParallel,
    "a child in DataParallel": parallel_child,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled, averaged and parallel": lambda net: nn.DataParallel(
        torch.compile(torch.optim.swa_utils.AveragedModel(net), backend="eager")
    ),
    "torch.fx": lambda net: torch.fx.symbolic_trace(net.eval()),
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_a_network_is_taken_out_of_what_it_is_wrapped_in(kind: str) -> None:
    classifier, net = wrapped(WRAPPINGS[kind](Net())), Net().eval()
    require_like_plain_torch(classifier, net)
    assert classifier.spec.embedding_layer == "fc"
    raw = explained(classifier, "grad_cam").extras["map_NCHW"]
    np.testing.assert_allclose(raw, grad_cam_of(net.backbone, head(net)), atol=1e-6)
    # Guided backprop of the plain network, whose ReLUs a wrapping would hide.
    np.testing.assert_allclose(
        explained(classifier, "guided_backprop").values_NCHW,
        explained(wrapped(Net()), "guided_backprop").values_NCHW,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    "kind", ["a compiled child", "a forward that closes over the module", "a child in DataParallel"]
)
def test_the_users_module_keeps_its_wrapping_and_its_mode(kind: str) -> None:
    module = WRAPPINGS[kind](Net()).train()
    before = [(name, type(part), part.training) for name, part in module.named_modules()]
    forward, weights = vars(module).get("forward"), {name: id(tensor) for name, tensor in module.named_parameters()}
    explained(wrapped(module), "grad_cam")
    assert [(name, type(part), part.training) for name, part in module.named_modules()] == before
    assert vars(module).get("forward") is forward
    assert {name: id(tensor) for name, tensor in module.named_parameters()} == weights
    assert not any(part._forward_hooks for part in module.modules())


def test_a_copy_in_another_width_runs_its_own_weights_also_where_its_forward_is_a_closure() -> None:
    classifier = wrapped(forward_by_closure(Net()))
    double = copy_of(classifier.module).double()
    x = torch.tensor(images()).double()
    np.testing.assert_allclose(double(x).detach().numpy(), Net().double().eval()(x).detach().numpy(), atol=1e-12)


# ---- scripted and traced networks


class Parent(Net):
    """A network of Python with a scripted or traced backbone."""

    def __init__(self, make: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.backbone = make(self.backbone.eval())


def trace(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.trace(module.eval(), torch.zeros(1, 3, SIDE, SIDE))


SCRIPTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": lambda module: torch.jit.script(module.eval()),
    "traced": trace,
    "frozen": lambda module: torch.jit.freeze(torch.jit.script(module.eval())),
    "traced in float64": lambda module: torch.jit.trace(
        module.eval().double(), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_of_a_scripted_network_scores_and_plain_gradients_are_torchs(kind: str) -> None:
    classifier = wrapped(SCRIPTS[kind](Net()))
    require_like_plain_torch(classifier, Net().eval())
    for method, options in (("smoothgrad", {"samples": 3}), ("integrated_gradients", {"steps": 3})):
        np.testing.assert_allclose(
            explained(classifier, method, **options).values_NCHW,
            explained(wrapped(Net()), method, **options).values_NCHW,
            atol=1e-6,
        )


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize(
    "ask",
    [
        lambda classifier: explained(classifier, "guided_backprop"),
        lambda classifier: explained(classifier, "deconvnet"),
        lambda classifier: explained(classifier, "grad_cam"),
        lambda classifier: ForwardPass(classifier, images()).embedding_ND,
        lambda classifier: torch_embedder(classifier, batch=2),
        lambda classifier: layer_filters(classifier),
        lambda classifier: run_neurons("saliency", ForwardPass(classifier, images(1)), [Neuron("", 0)]),
    ],
    ids=["guided_backprop", "deconvnet", "grad_cam", "embedding", "gallery", "filters", "neuron"],
)
def test_what_needs_to_see_into_a_scripted_network_is_refused(kind: str, ask: Callable[[Classifier], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="script"):
        ask(wrapped(SCRIPTS[kind](Net())))


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_what_a_scripted_part_of_a_network_gives_can_be_seen(kind: str) -> None:
    classifier, net = wrapped(Parent(SCRIPTS[kind])), Net().eval()
    require_like_plain_torch(classifier, net)
    assert (classifier.spec.embedding_layer, classifier.spec.gradcam_layer) == ("fc", "backbone")
    raw = explained(classifier, "grad_cam").extras["map_NCHW"]
    np.testing.assert_allclose(raw, grad_cam_of(net.backbone, head(net)), atol=1e-6)
    with torch.no_grad():
        embedding_ND = net.pool(net.backbone(torch.tensor(images()))).flatten(1).numpy()
    np.testing.assert_allclose(ForwardPass(classifier, images()).embedding_ND, embedding_ND, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="scripted"):
        explained(classifier, "guided_backprop")


def test_a_scripted_network_stays_in_its_mode_and_keeps_its_gradients() -> None:
    module = torch.jit.script(Net())
    explained(wrapped(module), "saliency")
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_half_precision_of_frozen_weights_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot be narrowed.*precision=float32"):
        explained(wrapped(SCRIPTS["frozen"](Net())), "occlusion", window=8, stride=8, precision="half")


# ---- what networks do inside


class Checkpointed(Net):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self._reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        maps = checkpoint(self.backbone, x, use_reentrant=self._reentrant)
        return self.fc(self.pool(maps).flatten(1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_networks_have_the_gradients_of_plain_ones(reentrant: bool) -> None:
    classifier = wrapped(Checkpointed(reentrant=reentrant))
    require_like_plain_torch(classifier, Net().eval())
    for method, options in (("smoothgrad", {"samples": 9}), ("integrated_gradients", {"steps": 9})):
        np.testing.assert_allclose(
            explained(classifier, method, **options).values_NCHW,
            explained(wrapped(Net()), method, **options).values_NCHW,
            atol=1e-6,
        )


def test_what_does_not_reach_into_a_reentrant_checkpoint_is_refused_with_the_reason() -> None:
    classifier = wrapped(Checkpointed(reentrant=True))
    with pytest.raises(UnsupportedModelError, match=r"custom autograd function \(CheckpointFunctionBackward\)"):
        explained(classifier, "guided_backprop")
    with pytest.raises(UnsupportedModelError, match=r"no gradient reaches the maps of layer 'backbone'.*reentrant"):
        explained(classifier, "grad_cam")


class WritesIntoItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return super().forward(x.mul_(2).add_(0.1))


def test_a_network_that_writes_into_its_input_gets_a_copy_of_it() -> None:
    classifier = wrapped(WritesIntoItsInput())
    assert classifier.spec.head == ("own-input",)
    given = images()
    x_NCHW = torch.tensor(given)
    forward = ForwardPass(classifier, x_NCHW)
    _ = forward.logits_NK
    assert torch.equal(x_NCHW, torch.tensor(given))
    plain = WritesIntoItsInput().eval()
    require_like_plain_torch(classifier, lambda x: plain(x.clone()))
    np.testing.assert_allclose(explained(classifier, "saliency").values_NCHW[:, 0], 0)


class ReturnsItsBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("results", torch.zeros(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        self.results[: len(x)] = super().forward(x)
        return self.results[: len(x)]


def test_results_that_lie_in_a_buffer_are_not_overwritten_by_later_ones() -> None:
    classifier = wrapped(ReturnsItsBuffer())
    assert classifier.spec.head == ("own-output",)
    first = classifier.module(torch.tensor(images()))
    kept = first.clone()
    classifier.module(torch.tensor(images()) * 3)
    assert torch.equal(first, kept)
    require_like_plain_torch(classifier, Net().eval())
    require_like_plain_torch(classifier, Net().eval())
    assert not any(buffer.requires_grad for buffer in classifier.module.buffers())


def changing_hooks(net: Net) -> Net:
    net.backbone[2].register_forward_hook(lambda _, __, out: out * 2)
    net.backbone[3].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    net.register_forward_hook(lambda _, __, out: out * 3)
    return net


def test_the_users_own_hooks_are_honoured_and_stay() -> None:
    module = changing_hooks(Net())
    classifier = wrapped(module)

    def by_hand(x: Tensor) -> Tensor:
        net = plain
        maps = net.backbone[2](net.backbone[1](net.backbone[0](x))) * 2 + 1
        return 3 * net.fc(net.pool(net.backbone[4](net.backbone[3](maps))).flatten(1))

    plain = Net().eval()
    require_like_plain_torch(classifier, by_hand)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    assert sum(hooks) == 3


class KeepsAGrid(Net):
    """Makes a factor for the size of each batch, and keeps the last."""

    grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or self.grid.shape != x.shape:
            self.grid = torch.linspace(0.5, 1.5, x.shape[-1]).expand(x.shape) * 1.0
        return super().forward(x * self.grid)


def test_what_a_network_keeps_of_a_pass_without_gradients_serves_one_with_them() -> None:
    classifier = wrapped(KeepsAGrid())
    require_like_plain_torch(classifier, lambda x: Net().eval()(x * torch.linspace(0.5, 1.5, SIDE)))
    # A batch of a size that no other pass had, first without gradients.
    forward = ForwardPass(classifier, images(7))
    _ = forward.outputs_of(images(7))
    assert np.isfinite(run("saliency", ForwardPass(classifier, images(7)), [1] * 7).values_NCHW).all()


class TakesMore(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, **_: Any) -> Tensor:
        return super().forward(x if mask is None else x * mask) * scale


def parametrised(net: Net) -> Net:
    parametrizations.weight_norm(net.backbone[0])
    parametrizations.spectral_norm(net.backbone[3])
    return net


def parametrised_by_hooks(net: Net) -> Net:
    nn.utils.weight_norm(net.backbone[0])
    nn.utils.spectral_norm(net.backbone[3])
    return net


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "optional arguments": TakesMore,
    "weight norm and spectral norm": lambda: parametrised(Net()),
    "norms of weights by hooks": lambda: parametrised_by_hooks(Net()),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_networks_of_other_kinds_are_explained_as_torch_runs_them(kind: str) -> None:
    module = PLAIN[kind]()
    require_like_plain_torch(wrapped(module), module.eval())


class UnderAutocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_network_that_computes_in_bfloat16_gives_float32_results() -> None:
    module = UnderAutocast().eval()
    classifier = wrapped(module)
    # Bit for bit: the same bfloat16 passes.
    np.testing.assert_array_equal(ForwardPass(classifier, images()).logits_NK, logits_of(module))
    np.testing.assert_array_equal(explained(classifier, "saliency").values_NCHW, saliency_of(module))
    with torch.autocast("cpu", torch.bfloat16):
        expected = grad_cam_of(module.backbone, head(module))
    raw = explained(classifier, "grad_cam").extras["map_NCHW"]
    assert raw.dtype == np.float32
    np.testing.assert_allclose(raw, expected, rtol=0.02, atol=1e-4)  # eight bits of mantissa, summed otherwise
    neuron = run_neurons("saliency", ForwardPass(classifier, images(1)), [Neuron("backbone.3", 1)])
    assert neuron.score_N.dtype == np.float32


# ---- where no gradient reaches the image


class Frozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.backbone(x)
        return self.fc(self.pool(maps).flatten(1))


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.backbone(x).detach()).flatten(1))


class Inference(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            maps = self.backbone(x)
        return self.fc(self.pool(maps.clone()).flatten(1))


class WhollyInference(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class ThroughNumpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.numpy() * 1.0))


WITHOUT = {
    "no_grad": (Frozen, "no gradient reaches the image"),
    "detach": (Detached, "no gradient reaches the image"),
    "inference_mode": (Inference, "no gradient reaches the image"),
    "inference_mode throughout": (WhollyInference, "no gradient reaches the image"),
    "numpy inside": (ThroughNumpy, "torch cannot differentiate this network: Can't call numpy"),
}


@pytest.mark.parametrize("kind", WITHOUT)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("saliency", {}),
        ("guided_backprop", {}),
        ("deconvnet", {}),
        ("smoothgrad", {"samples": 2}),
        ("integrated_gradients", {"steps": 2}),
    ],
)
def test_gradients_that_do_not_reach_the_image_are_refused(kind: str, method: str, options: dict[str, Any]) -> None:
    make, reason = WITHOUT[kind]
    with pytest.raises(UnsupportedModelError, match=f"{reason}.*use occlusion"):
        explained(wrapped(make()), method, **options)


@pytest.mark.parametrize("kind", WITHOUT)
def test_without_gradients_scores_and_occlusion_are_torchs(kind: str) -> None:
    classifier, net = wrapped(WITHOUT[kind][0]()), Net().eval()
    np.testing.assert_allclose(ForwardPass(classifier, images()).logits_NK, logits_of(net), atol=1e-6)
    occlusion = explained(classifier, "occlusion", window=8, stride=8)
    np.testing.assert_allclose(occlusion.extras["grid_NRQ"], occlusion_of(net), atol=1e-6)


class FrozenStem(Net):
    """The usual fine-tuning: early layers under no_grad, the rest trained."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.backbone[:3](x)
        return self.fc(self.pool(self.backbone[3:](maps)).flatten(1))


def test_grad_cam_behind_a_frozen_stem_needs_no_gradient_by_the_image() -> None:
    classifier, net = wrapped(FrozenStem()), Net().eval()
    raw = explained(classifier, "grad_cam").extras["map_NCHW"]
    np.testing.assert_allclose(raw, grad_cam_of(net.backbone, head(net)), atol=1e-6)


class PartlyDetached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.fc(self.pool(self.backbone(x).detach()).flatten(1))


def test_where_one_of_two_ways_is_detached_the_gradient_is_torchs() -> None:
    np.testing.assert_allclose(
        explained(wrapped(PartlyDetached()), "saliency").values_NCHW, saliency_of(PartlyDetached().eval()), atol=1e-6
    )


# ---- refused at once


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.LazyConv2d(8, 3), nn.ReLU())


def statically_quantised() -> nn.Module:
    quantisation, net = torch.ao.quantization, Net().eval()
    module = nn.Sequential(
        quantisation.QuantStub(),
        *net.backbone,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        net.fc,
        quantisation.DeQuantStub(),
    ).eval()
    module.qconfig = quantisation.get_default_qconfig(torch.backends.quantized.engine)
    quantisation.prepare(module, inplace=True)
    module(torch.tensor(images()))
    return quantisation.convert(module)


def dynamically_quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)


def of_fixed_batch() -> nn.Module:
    return torch.export.export(Net().eval(), (torch.zeros(2, 3, SIDE, SIDE),)).module()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "meta": (lambda: Net().to("meta"), "backbone.0.weight is on the meta device.*load the weights first"),
    "lazy": (Lazy, "backbone.0.weight has no shape yet.*run one batch"),
    "static quantisation": (statically_quantised, "is quantised.*wrap the float network"),
    "dynamic quantisation": (dynamically_quantised, "fc is quantised.*wrap the float network"),
    "scripted quantisation": (lambda: trace(dynamically_quantised()), "is quantised.*wrap the float network"),
    "exported for one size of batch": (of_fixed_batch, "fails on one alone.*batches of any size"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_networks_that_cannot_be_computed_are_refused_with_the_reason(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(ModelError, match=reason):
        wrapped(make())


def test_an_exported_program_of_any_batch_is_explained() -> None:
    batch = torch.export.Dim("N", min=1, max=512)
    program = torch.export.export(Net().eval(), (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},))
    require_like_plain_torch(wrapped(program.module()), Net().eval())


# ---- the same from a file


FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.pool(self.backbone(x)).flatten(1))

class Writes(Net):
    def forward(self, x):
        return super().forward(x.mul_(2))

def parallel():
    return nn.DataParallel(Net())

def compiled_child():
    net = Net()
    net.backbone = torch.compile(net.backbone, backend="eager")
    return net

def traced():
    return torch.jit.trace(Net().eval(), torch.zeros(1, 3, 16, 16))

def traced_child():
    net = Net()
    net.backbone = torch.jit.trace(net.backbone.eval(), torch.zeros(1, 3, 16, 16))
    return net

def quantised():
    return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("factory", ["parallel", "compiled_child", "traced", "traced_child", "Writes"])
def test_networks_from_a_file_are_loaded_and_packed_the_same_way(tmp_path: Path, file: Path, factory: str) -> None:
    loaded = load(f"file:{file}:{factory}?size={SIDE}", device="cpu")
    pack(loaded, tmp_path / "packed")
    opened = unpack(tmp_path / "packed", device="cpu")
    for classifier in (loaded, opened):
        plain = load(f"file:{file}:Net?size={SIDE}", device="cpu").module
        scale = 2 if factory == "Writes" else 1
        require_like_plain_torch(classifier, lambda x, scale=scale, plain=plain: plain(x * scale))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantised_network_from_a_file_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match="fc is quantised"):
        load(f"file:{file}:quantised?size={SIDE}", device="cpu")


NEIGHBOURS = {
    "import layers": ("import layers\n", "imports layers from its own folder"),
    "from layers import": ("from layers import Block\n", "imports layers from its own folder"),
    "relative": ("from .layers import Block\n", "imports .layers from its own folder"),
    "a package": ("from parts.blocks import Block\n", "imports parts from its own folder"),
}


def with_neighbours(folder: Path, line: str) -> Path:
    (folder / "parts").mkdir()
    for path in (folder / "layers.py", folder / "parts" / "blocks.py"):
        path.write_text("class Block:\n    pass\n")
    path = folder / "net.py"
    path.write_text(line + FILE)
    return path


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_a_file_whose_neighbours_cannot_be_imported_says_what_to_do(tmp_path: Path, kind: str) -> None:
    line, reason = NEIGHBOURS[kind]
    path = with_neighbours(tmp_path, line)
    with pytest.raises(ModelError, match=f"{reason}.*put the code into the one file"):
        load(f"file:{path}:Net?size={SIDE}", device="cpu")


def test_a_file_whose_neighbours_happen_to_be_importable_is_not_packed_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_neighbours(tmp_path, "import layers\n")
    monkeypatch.syspath_prepend(tmp_path)
    classifier = load(f"file:{path}:Net?size={SIDE}", device="cpu")
    with pytest.raises(ModelError, match="imports layers from its own folder, and one file is packed; put the code"):
        pack(classifier, tmp_path / "packed")
    assert not (tmp_path / "packed" / "model.json").exists()


def test_a_name_that_is_no_neighbour_stays_an_ordinary_import_error(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import no_such_package_anywhere\n" + FILE)
    with pytest.raises(ModelError, match="failed to import: ModuleNotFoundError"):
        load(f"file:{path}:Net?size={SIDE}", device="cpu")
