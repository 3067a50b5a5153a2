"""Which layer of the student is compared with which of the teacher.

Index 0 is the output of the embeddings, `i` the output of block `i`, counted from 1: the index in the `hidden_states`
that Transformers models return. (Their last entry is what the head sees; in Llama and its kin that is after the final
norm.) Maps of attention belong to blocks, so there is none at index 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Part = Literal["encoder", "decoder"]
Entries = TypeVar("Entries", bound=tuple[Any, ...])
# Kinds of layers, in a configuration's `layer_types`, that have no map of attention.
WITHOUT_MAPS = {"linear_attention", "mamba", "conv", "recurrent"}


def _tuples(value: Any) -> Any:
    """Let Python users write pairs as lists too, as YAML does; what is no list of lists is left to pydantic."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(tuple(pair) if isinstance(pair, list | tuple) else pair for pair in value)


def each_once(entries: Entries) -> Entries:
    """Refuse what is listed twice: it would weigh twice as much as the others."""
    for entry in entries:
        if entries.count(entry) > 1:
            named = list(entry) if isinstance(entry, tuple) else entry
            raise ValueError(f"{named} stands twice, and would count twice. Keep one.")
    return entries


Index = Annotated[int, Field(ge=0)]
Pairs = Annotated[
    tuple[tuple[Index, Index], ...], Field(min_length=1), BeforeValidator(_tuples), AfterValidator(each_once)
]
# A rule, or pairs [student's index, teacher's index].
Layers = Literal["uniform", "last", "middle", "skip", "tail", "similarity"] | Pairs


@dataclass(frozen=True)
class States:
    """Hidden states of one layer of a teacher, as far as an objective reads them.

    Attributes:
        layer: Its index.
        of: Those of all `tokens` that count; or one vector for every text: their `mean`, the `first` or the `last`.
        part: Which stack of an encoder-decoder; None for other models.
    """

    layer: int
    of: Literal["tokens", "mean", "first", "last"] = "tokens"
    part: Part | None = None

    def __str__(self) -> str:
        """Return `4`, `12 (mean)` or `encoder 6`."""
        number = f"{self.part} {self.layer}" if self.part else str(self.layer)
        return number if self.of == "tokens" else f"{number} ({self.of})"


@dataclass(frozen=True)
class Stack:
    """What a configuration says about one stack of blocks.

    Attributes:
        name: Which model, for messages.
        depth: Number of blocks.
        width: Entries of a hidden state.
        heads: Attention heads of a block; None where it has none, or not the same number in every block, or another
            mechanism in some.
    """

    name: str
    depth: int
    width: int
    heads: int | None


def read_stack(config: PretrainedConfig, part: Part | None, whose: str) -> Stack:
    """Return the stack of blocks that is compared.

    Args:
        config: Of a whole model; of one that also sees images, the text part is read.
        part: Which of the two stacks of an encoder-decoder; None for any other model.
        whose: `student` or `teacher`, for messages.

    Raises:
        UserError: `part` is missing, or means nothing here; or the model does not say how many blocks it has.
    """
    name = f"the {whose} ({config.model_type or type(config).__name__})"
    if config.is_encoder_decoder and part is None:
        raise UserError(f"{name} has an encoder and a decoder: say which is compared, encoder or decoder.", key="part")
    if part is not None and not config.is_encoder_decoder:
        raise UserError(f"'{part}' is for models with an encoder and a decoder, and {name} is none.", key="part")
    text: Any = config.get_text_config(encoder=part == "encoder", decoder=part == "decoder")
    depth, width, heads = (
        getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    if part == "decoder":  # T5 and ProphetNet count their decoder's blocks apart
        depth = getattr(text, "num_decoder_layers", None) or depth
    if not isinstance(depth, int) or not isinstance(width, int):
        raise UserError(
            f"{name} does not say how many layers it has, or how wide they are, so they cannot be compared. Compare "
            "the outputs instead, e.g. {name: kl}.",
            key="name",
        )
    everywhere = WITHOUT_MAPS.isdisjoint(getattr(text, "layer_types", None) or ())
    return Stack(name, depth, width, heads if isinstance(heads, int) and everywhere else None)


def last_layer(teacher: PretrainedConfig, of: Literal["mean", "first", "last", "embedding"]) -> tuple[States, ...]:
    """Return what stands for a text where objectives compare texts: nothing but an answer, if that is the embedding.

    Raises:
        UserError: The model does not say how many layers it has.
    """
    if of == "embedding":
        return ()
    part: Part | None = "encoder" if teacher.is_encoder_decoder else None
    return (States(read_stack(teacher, part, "teacher").depth, of, part),)


def layer_pairs(
    choice: Layers, student_depth: int, teacher_depth: int, *, lowest: int = 0
) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student's index, teacher's index) that `choice` means for two depths `S` and `T`.

    - `uniform`: `i` with `i * T / S`, rounded, for `i` from 1 to `S` (TinyBERT, Jiao et al. 2020, arXiv 1909.10351).
    - `last`: `S` with `T`.
    - `middle`: the middle layer of each (FitNets, Romero et al. 2015, arXiv 1412.6550).
    - `skip`: as `uniform` without the last layer (PKD-skip, Sun et al. 2019, arXiv 1908.09355).
    - `tail`: `i` with `T - S + i` for `i` from 1 to `S - 1` (PKD-last there).
    - `similarity`: as `uniform` until the models have been measured (see `similarity.Similarity`).

    Args:
        choice: A rule or the pairs themselves.
        student_depth: `S`, the student's number of blocks.
        teacher_depth: `T`.
        lowest: The lowest index there is: 0, or 1 where the output of the embeddings has nothing to compare.

    Raises:
        UserError: An index out of range, or a rule that leaves nothing to compare; `key` is `layers`.

    >>> layer_pairs("uniform", 4, 12)
    ((1, 3), (2, 6), (3, 9), (4, 12))
    >>> layer_pairs("skip", 4, 12)
    ((1, 3), (2, 6), (3, 9))
    >>> layer_pairs("tail", 4, 12)
    ((1, 9), (2, 10), (3, 11))
    """
    if not isinstance(choice, str):
        _check_range(choice, student_depth, teacher_depth, lowest)
        return choice
    if choice == "last":
        return ((student_depth, teacher_depth),)
    if choice == "middle":
        return (((student_depth + 1) // 2, (teacher_depth + 1) // 2),)
    # Halves go up: `round` would take them to the even number, and 4 of 6 layers would be 2, 3, 4, 6.
    pairs = tuple(
        (i, max(1, (2 * i * teacher_depth + student_depth) // (2 * student_depth))) for i in range(1, student_depth + 1)
    )
    if choice in ("uniform", "similarity"):
        return pairs
    if student_depth < 2:
        raise UserError(
            f"'{choice}' leaves out the student's last layer, and it has no other. Try 'last'.", key="layers"
        )
    if choice == "skip":
        return pairs[:-1]
    if student_depth > teacher_depth:
        raise UserError(
            f"'tail' counts both stacks from the end, and the student's {student_depth} layers are more than the "
            f"teacher's {teacher_depth}. Try 'uniform'.",
            key="layers",
        )
    return tuple((i, teacher_depth - student_depth + i) for i in range(1, student_depth))


def _check_range(pairs: tuple[tuple[int, int], ...], student_depth: int, teacher_depth: int, lowest: int) -> None:
    for pair in pairs:
        for index, depth, whose in zip(pair, (student_depth, teacher_depth), ("student", "teacher"), strict=True):
            if index < lowest:
                raise UserError(
                    f"{list(pair)}: index 0 is the output of the embeddings, and there is no attention in them; "
                    f"the {whose}'s layers are 1 to {depth}.",
                    key="layers",
                )
            if index > depth:
                raise UserError(
                    f"{list(pair)}: the {whose} has no layer {index}. Its layers are 1 to {depth}"
                    f"{', 0 is the output of its embeddings' if lowest == 0 else ''}; pairs are [student, teacher].",
                    key="layers",
                )
