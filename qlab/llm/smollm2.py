"""SmolLM2-135M-Instruct (Allal et al. 2025) from its GGUF file, as the same nn.Module as our own models: 30 blocks, 134,515,008 weights.

Any file of the architecture "llama" with an embedding that is read twice is read so: sizes from the header, weights by name.

    token_embd, output_norm                                          embedding, norm
    blk.3.attn_norm, .ffn_norm                                       blocks.3.attention_norm, .mlp_norm
    blk.3.attn_q, .attn_k, .attn_v, .attn_output                     blocks.3.attention.query, .key, .value, .output
    blk.3.ffn_gate, .ffn_up, .ffn_down                               blocks.3.mlp.gate, .up, .down

    model, tokenizer = smollm2.load()
    tokenizer.decode(generate(model, tokenizer.encode("The capital of France is"), 1))          # " Paris"

Llama's files hold queries and keys with the rows in the order that positions turn them, (2i, 2i + 1), as qlab.llm.model does.
"""

import os

from qlab.llm import gguf, smollm2_file
from qlab.llm.gguf import shown
from qlab.llm.gguf_tokenizer import FileTokenizer
from qlab.llm.model import GPT, Config

NAMES = {
    "token_embd": "embedding", "output_norm": "norm", "attn_norm": "attention_norm", "ffn_norm": "mlp_norm", "attn_q": "attention.query",
    "attn_k": "attention.key", "attn_v": "attention.value", "attn_output": "attention.output", "ffn_gate": "mlp.gate", "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
LONGEST = 8192  # tokens: the table of positions is made for so many at most, whatever a file says
LARGEST = 2**20  # of every size: what is larger is a damaged header
MARKS = ("<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what it was trained with


def load(path: str | os.PathLike | None = None) -> tuple[GPT, FileTokenizer]:
    """The model, float32, in evaluation mode, and its tokenizer. path: a GGUF file, by default where `qlab get smollm2` puts it.

    Raises OSError where there is no such file or it cannot be read; ValueError, in one sentence, for what is damaged or no GGUF file, of
    another architecture, with tensors that are missing, superfluous, of a wrong shape, or in a block type that qlab.llm.gguf_blocks does
    not decode.
    """
    if path is None and not smollm2_file.path().exists():
        raise FileNotFoundError(f"SmolLM2 is not at {smollm2_file.path()}: the command qlab get smollm2 fetches it, 93 MB.")
    file = gguf.read(smollm2_file.path() if path is None else path)
    return model(file), FileTokenizer(file)


def config(file: gguf.File) -> Config:
    """The sizes in the header. Raises ValueError for another architecture, or a size that is missing or no possible one."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != "llama":                        # an array is no string, and has no one answer
        raise ValueError(f"{file.path} holds a model of the architecture {shown(architecture)}, and must hold one of 'llama'.")

    def size(name: str, kind: type = int):
        found = file.metadata.get(f"llama.{name}")
        if type(found) is not kind or not 0 < found <= LARGEST:
            raise ValueError(f"{file.path} says that llama.{name} is {shown(found)}, and it must be a number above 0, {LARGEST:,} at most.")
        return found

    for key, value in file.metadata.items():
        if key.startswith("llama.rope.scaling.") and str(value) not in ("none", "1.0"):
            raise ValueError(f"{file.path} stretches its positions ({key}), and must turn them by the plain rotary rule.")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path} lacks the tensor token_embd.weight, or it is no matrix.")
    try:
        c = Config(embedding.shape[0], size("embedding_length"), size("block_count"), size("attention.head_count"),
                   size("attention.head_count_kv"), size("feed_forward_length"), min(size("context_length"), LONGEST),
                   size("rope.freq_base", float), size("attention.layer_norm_rms_epsilon", float))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(file.path)) else f"{file.path} is damaged: {error}") from None
    turned = file.metadata.get("llama.rope.dimension_count", c.head_width)
    if type(turned) is not int or turned != c.head_width:
        raise ValueError(f"{file.path} turns {shown(turned)} numbers of each head, and must turn all {c.head_width}.")
    return c


def model(file: gguf.File) -> GPT:
    """The model of the file's sizes with its weights, each decoded to float32. Raises ValueError as `load` does."""
    c = config(file)
    if 9 * c.blocks + 2 > len(file.tensors):                                                # before so many blocks are made
        raise ValueError(f"{file.path} has {len(file.tensors)} tensors, and {c.blocks} blocks need {9 * c.blocks + 2}.")
    wanted = shapes(c)
    for name, shape in wanted.items():                                                      # before room for so many numbers is made
        if name not in file.tensors or file.tensors[name].shape != shape:
            found = f"has the tensor {name} of shape {file.tensors[name].shape}" if name in file.tensors else f"lacks the tensor {name}"
            raise ValueError(f"{file.path} {found}, and must have one of shape {shape}.")
    if extra := sorted(file.tensors.keys() - wanted.keys()):
        raise ValueError(f"{file.path} has the tensor {extra[0]}, which this model has no place for.")
    made = GPT(c)
    made.load_state_dict({our_name(name): file.tensors[name].dequantize() for name in wanted}, assign=True)
    return made.eval()


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The tensors of a model of these sizes, by their names in the file.

    >>> smollm2 = Config(vocabulary=49152, width=576, blocks=30, heads=9, kv_heads=3, hidden=1536, context=8192, rope_base=100000.0)
    >>> shapes(smollm2)["blk.29.attn_k.weight"], len(shapes(smollm2))
    ((192, 576), 272)
    """
    few = c.kv_heads * c.head_width
    block = {"attn_norm": (c.width,), "attn_q": (c.width, c.width), "attn_k": (few, c.width), "attn_v": (few, c.width),
             "attn_output": (c.width, c.width), "ffn_norm": (c.width,), "ffn_gate": (c.hidden, c.width), "ffn_up": (c.hidden, c.width),
             "ffn_down": (c.width, c.hidden)}
    blocks = {f"blk.{i}.{name}.weight": shape for i in range(c.blocks) for name, shape in block.items()}
    return {"token_embd.weight": (c.vocabulary, c.width), **blocks, "output_norm.weight": (c.width,)}


def our_name(name: str) -> str:
    """The model's name for a tensor of the file.

    >>> our_name("blk.3.attn_q.weight")
    'blocks.3.attention.query.weight'
    """
    if name.startswith("blk."):
        _, number, part, weight = name.split(".")
        return f"blocks.{number}.{NAMES[part]}.{weight}"
    part, weight = name.split(".")
    return f"{NAMES[part]}.{weight}"


def chat(tokenizer: FileTokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a conversation, up to where the assistant's next words begin. messages: {"role": ..., "content": ...}, a role being
    system, user or assistant; without a system message first, the one of the training is taken. Marks within a content are mere letters.

    Raises ValueError for no messages, another role or other keys, a tokenizer that lacks the marks.

    What the assistant says ends with <|im_end|>: `generate(model, chat(tokenizer, messages), 50, stop=tokenizer.end)`.
    """
    if not messages:
        raise ValueError("there are no messages, and must be one at least.")
    for message in messages:
        right = isinstance(message, dict) and set(message) == {"role", "content"} and message["role"] in ROLES
        if not (right and isinstance(message["content"], str)):
            raise ValueError(f"a message is {message!r}, and must be {{'role': ..., 'content': ...}}, a text with a role of "
                             f"{', '.join(ROLES)}.")
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    if missing := [mark for mark in MARKS if mark not in tokenizer.marks]:
        raise ValueError(f"the tokenizer has no mark {missing[0]}, and a conversation needs {' and '.join(MARKS)}: take SmolLM2's own.")
    start, end = (tokenizer.marks[mark] for mark in MARKS)
    tokens = []
    for message in messages:
        tokens += [start, *tokenizer.encode(f"{message['role']}\n{message['content']}"), end, *tokenizer.encode("\n")]
    return [*tokens, start, *tokenizer.encode("assistant\n")]
