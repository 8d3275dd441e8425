"""All contact with vLLM's internals, for vLLM 0.32 and 0.33. Importing this file needs vLLM.

vLLM moves its internal classes every few weeks; whatever breaks then, breaks here, and loudly: coverage of the layers
is verified when the model is built, the shape of a layer's result when it is traced, the edits of every trial when it
is done.

    register            the patched model classes, under the names of their originals
    tomograph::edit     the custom operation at the end of every decoder layer
    Draw, draw_v2       logits processors that leave one token, drawn with the trial's own random number
    model_state_v2      the V2 runner's seam; V1 is entered in WorkerExtension.tomograph_attach
    WorkerExtension     what the driver calls in every worker
    salt_where_edited   the prefix cache's salt, placed at the first edited position
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vllm import EngineArgs, LLMEngine, ModelRegistry, SamplingParams, envs
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.model_executor.models.utils import PPMissingLayer
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core import kv_cache_utils
from vllm.v1.sample.logits_processor import LogitsProcessor

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture
from tasks.engines.vllm.requests import KEY, salted_position
from tasks.engines.vllm.settings import BANK_PATH
from tasks.engines.vllm.state import Call, Outcome, WorkerState
from tasks.engines.vllm.supported import ARCHITECTURES

_state: WorkerState | None = None
"""This process's worker; an engine is built after the one before it was closed."""

_serving = False
"""From now on every request is the driver's."""


def _edit(hidden: Tensor, residual: Tensor, layer: int) -> None:
    if _state is not None:
        _state.apply(hidden, residual, layer)


@torch.library.custom_op("tomograph::edit", mutates_args=("hidden",))
def edit(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """The edits and captures of one layer; opaque to torch.compile, its kernels are part of CUDA graphs."""
    _edit(hidden, residual, layer)


@edit.register_fake
def _(hidden: Tensor, residual: Tensor, layer: int) -> None:
    return None


@functools.cache
def _edited(layer_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a decoder layer that hands its result to the operation."""

    def forward(self, *args, **kwargs):
        out = layer_class.forward(self, *args, **kwargs)
        hidden, residual = out  # any other result is an error here, while the model is traced
        torch.ops.tomograph.edit(hidden, residual, self.tomograph_layer)
        return hidden, residual

    return type(f"Edited{layer_class.__name__}", (layer_class,), {"forward": forward})


def _patched(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a vLLM causal language model whose decoder layers edit, where the engine asks for it."""

    class Patched(base):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs):
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            if KEY in vllm_config.additional_config:
                _install(self, vllm_config)
                if vllm_config.use_v2_model_runner:
                    self.get_model_state_cls = model_state_v2

    Patched.__name__ = Patched.__qualname__ = base.__name__
    return Patched


def _install(model: nn.Module, config: VllmConfig) -> None:
    global _state
    layers = model.model.layers
    for index, layer in enumerate(layers):
        if isinstance(layer, PPMissingLayer):
            raise NotImplementedError("pipeline parallelism: each worker would need the layers' global numbers")
        layer.__class__ = _edited(type(layer))
        layer.tomograph_layer = index
    expected = config.model_config.hf_text_config.num_hidden_layers
    covered = sum(hasattr(module, "tomograph_layer") for module in model.modules())
    if covered != expected:
        raise RuntimeError(f"{type(model).__name__}: {covered} of {expected} decoder layers can be edited")
    what = config.additional_config[KEY]
    device = config.device_config.device
    # Models are built with their own dtype as the default one.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            bank = Bank.from_tensors(load_file(os.environ[BANK_PATH])) if what["bank"] else None
        _state = WorkerState(
            bank,
            d_model=config.model_config.hf_text_config.hidden_size,
            max_requests=config.scheduler_config.max_num_seqs,
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            device=torch.device(device),
            static=torch.device(device).type == "cuda" and not config.model_config.enforce_eager,
            capture=Capture(**what["capture"]),
        )
    finally:
        torch.set_default_dtype(before)


def register() -> None:
    """Make vLLM build the patched classes in this process."""
    from vllm.model_executor.models.registry import _LazyRegisteredModel

    for name in ARCHITECTURES:
        known = ModelRegistry.models[name]
        if isinstance(known, _LazyRegisteredModel):
            ModelRegistry.register_model(name, _patched(known.load_model_cls()))


register()  # a worker process imports this file for its extension, before it builds a model


class Draw(LogitsProcessor):
    """V1 runner: leaves of each request's logits the one token that was drawn."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        pass

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        pass

    def apply(self, logits: Tensor) -> Tensor:
        return _drawn(logits)


def _drawn(logits: Tensor) -> Tensor:
    tokens = _state.draw(logits)
    return logits.fill_(float("-inf")).scatter_(1, tokens[:, None], 0.0)


def __getattr__(name: str) -> type:
    """`DrawV2`, made when vLLM asks for it by name: what it derives from belongs to the V2 runner."""
    if name != "DrawV2":
        raise AttributeError(name)
    return draw_v2()


@functools.cache
def draw_v2() -> type:
    """`Draw` for the V2 runner, whose logits processors have an interface of their own."""
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

    class DrawV2(LogitsProcessorV2):
        def apply(self, logits: Tensor, ctx) -> Tensor:
            return _drawn(logits) if _serving else logits

    return DrawV2


def model_state_v2() -> type:
    """V2 runner: what `WorkerExtension.tomograph_attach` does for V1, at the seam that V2 offers to models.

    Before it serves, vLLM warms up with requests of its own, which carry no instructions.
    """
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    class EditedModelState(DefaultModelState):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._instructions: dict[int, Mapping] = {}
            self._input_ids: Tensor | None = None

        def add_request(self, req_index: int, new_req_data) -> None:
            super().add_request(req_index, new_req_data)
            if _serving:
                self._instructions[req_index] = _instructions(new_req_data.sampling_params)

        def prepare_inputs(self, input_batch, req_states) -> dict:
            if _serving:
                n = input_batch.num_reqs
                requests = [self._instructions[index] for index in input_batch.idx_mapping_np[:n].tolist()]
                _state.prepare(requests, input_batch.num_computed_tokens_np[:n], input_batch.num_scheduled_tokens[:n])
                self._input_ids = input_batch.input_ids
            return super().prepare_inputs(input_batch, req_states)

        def postprocess_state(self, idx_mapping, num_sampled, num_computed_tokens=None) -> None:
            super().postprocess_state(idx_mapping, num_sampled, num_computed_tokens)
            if _serving:
                _state.finish(self._input_ids)

    return EditedModelState


def on_cuda() -> bool:
    return current_platform.is_cuda()


class WorkerExtension:
    """Methods that every worker gets; the driver calls them by name. Nothing here catches an exception."""

    def tomograph_attach(self) -> None:
        """After the model was built and warmed up: from now on, passes carry requests."""
        global _serving
        _serving = True
        runner = self.model_runner
        if not on_cuda() and runner.model_config.dtype != torch.float32:
            _hold_float32_head(runner.model.logits_processor)
        if self.use_v2_model_runner:
            return
        forward = runner._model_forward

        def model_forward(input_ids=None, *args, **kwargs):
            batch = runner.input_batch
            requests = [_instructions(runner.requests[name].sampling_params) for name in batch.req_ids]
            n = len(requests)
            scheduled = runner.query_start_loc.np[1 : n + 1] - runner.query_start_loc.np[:n]
            _state.prepare(requests, batch.num_computed_tokens_cpu[:n], scheduled)
            out = forward(input_ids, *args, **kwargs)
            _state.finish(input_ids)
            return out

        runner._model_forward = model_forward

    @torch.inference_mode()
    def tomograph_begin(self, call: Call) -> None:
        _state.begin(call)

    @torch.inference_mode()
    def tomograph_add_dictionary(self, path: str) -> None:
        _state.add_dictionary(path)

    @torch.inference_mode()
    def tomograph_collect(self, slots: Sequence[int]) -> Outcome:
        return _state.collect(slots)

    def tomograph_release(self) -> None:
        _forget()


def _hold_float32_head(processor: nn.Module) -> None:
    """On a CPU, vLLM casts the whole head to float32 in every pass; here it is cast once. Same products, same sums."""
    weights: dict[nn.Module, Tensor] = {}

    def apply_head(head: nn.Module, hidden: Tensor, bias: Tensor | None) -> Tensor:
        if head not in weights:
            weights[head] = head.weight.float()
        return nn.functional.linear(hidden.float(), weights[head], None if bias is None else bias.float())

    processor._apply_head = apply_head


def _forget() -> None:
    global _state, _serving
    _state, _serving = None, False


def _instructions(params) -> Mapping:
    return params.extra_args[KEY]


def salt_where_edited() -> None:
    """Put the salts of `requests.cache_salt` into the hash of the block that holds the position they name.

    vLLM puts a salt into a request's first block. Other salts stay there.
    """
    original = kv_cache_utils.generate_block_hash_extra_keys
    if hasattr(original, "tomograph"):
        return

    @functools.wraps(original)
    def extra_keys(request, start: int, end: int, mm_index: int):
        keys, next_index = original(request, start, end, mm_index)
        position = salted_position(request.cache_salt)
        if position is None:
            return keys, next_index
        ours = ("cache_salt", request.cache_salt)
        others = tuple(key for key in keys or () if key != ours)
        placed = (*others, ours) if start <= position < end else others
        return placed or None, next_index

    extra_keys.tomograph = True
    kv_cache_utils.generate_block_hash_extra_keys = extra_keys


def start(arguments: Mapping) -> LLMEngine:
    """An engine whose scheduler runs in this process; its exceptions come straight through."""
    salt_where_edited()
    set_num_threads = torch.set_num_threads  # vLLM replaces it on a CPU, for the whole process
    try:
        draw = "DrawV2" if envs.VLLM_USE_V2_MODEL_RUNNER else "Draw"
        own = {"worker_extension_cls": f"{__name__}.WorkerExtension", "logits_processors": [f"{__name__}:{draw}"]}
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments, **own))
    except BaseException:
        _release()
        raise
    finally:
        torch.set_num_threads = set_num_threads
    engine.collective_rpc("tomograph_attach")
    return engine


def stop(engine: LLMEngine) -> None:
    engine.collective_rpc("tomograph_release")
    engine.engine_core.shutdown()
    _release()


def _release() -> None:
    _forget()
    cleanup_dist_env_and_memory()


def cache_room(engine: LLMEngine) -> tuple[int, int, int]:
    """Of the key-value cache: blocks, tokens in a block, groups (every token takes a place in each of them)."""
    config = engine.engine_core.engine_core.scheduler.kv_cache_config
    groups = config.kv_cache_groups
    size = min(group.kv_cache_spec.block_size for group in groups)
    return config.num_blocks - 1, size, len(groups)  # block 0 is vLLM's own


def prompt(ids: Sequence[int], salt: str | None) -> TokensInput:
    return tokens_input(list(ids), cache_salt=salt)


def sampling(instructions: Mapping, end_tokens: Sequence[int]) -> SamplingParams:
    """Greedy for vLLM: `Draw` leaves one token to choose."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=instructions["max_new_tokens"],
        stop_token_ids=list(end_tokens),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={KEY: dict(instructions)},
    )
