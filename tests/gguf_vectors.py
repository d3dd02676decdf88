"""Made tests/data/gguf: what others read in GGUF files, for tests without them. With gguf 0.19.0 and tokenizers 0.22.1 installed:

    python tests/gguf_vectors.py

blocks.gguf     metadata of every type; of each block type random blocks and, as expected.TYPE, what gguf decodes them to
llama.gguf      a model of two blocks with random weights in every block type, and a small vocabulary learnt by tokenizers from LICENSE
llama.json      the logits of that model, computed here in NumPy; texts and the numbers that tokenizers gives them
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "data" / "gguf"
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "<tool>s"]
LETTERS = "abc  XYZ'sltdmrev 0123٣²½Ⅷ五一éñß\n\t\r.,!?_-\x1c\x1f\x85\xa0\u3000\u200b\u200320ǅʰⁿ\u0301😀"
TEMPLATE = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def blocks(rng) -> None:
    import gguf
    from gguf.quants import dequantize

    writer = gguf.GGUFWriter(FOLDER / "blocks.gguf", "none")
    for kind, value in (("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 2**32 - 1), ("int32", -2**31),
                        ("float32", 0.1), ("uint64", 2**64 - 1), ("int64", -2**63), ("float64", 0.1), ("bool", True),
                        ("string", "für €😀")):
        getattr(writer, f"add_{kind}")(f"one.{kind}", value)
    for kind, values in (("UINT8", [1, 255]), ("INT16", [-1, 2]), ("FLOAT32", [0.5, -0.25]), ("INT64", [-2**40]), ("BOOL", [True, False]),
                         ("STRING", ["a", "", "ß"])):
        writer.add_key_value(f"many.{kind}", values, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType[kind])
    for name in ("Q8_0", "Q4_0", "Q4_1", "MXFP4"):
        kind = gguf.GGMLQuantizationType[name]
        raw = rng.integers(0, 256, (5, 3, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        if name == "MXFP4":
            raw[:, :, 0].flat[:7] = 0, 1, 2, 127, 253, 254, 255  # the smallest and the largest scales
        else:
            halves = 2 if name == "Q4_1" else 1
            values = np.concatenate([rng.standard_normal(5 * 3 * halves - 4), [0.0, 6e-8, -65504, 2e-5]]).astype("<f2")
            raw[:, :, :2 * halves] = rng.permutation(values).view(np.uint8).reshape(5, 3, -1)
        raw = raw.reshape(5, -1)
        writer.add_tensor(name, raw, raw_dtype=kind)
        with np.errstate(over="ignore"):
            writer.add_tensor(f"expected.{name}", dequantize(raw, kind))
    writer.add_tensor("F16", rng.standard_normal((2, 3, 5)).astype(np.float16))
    writer.add_tensor("F32", np.arange(7, dtype=np.float32))
    finish(writer)


def vocabulary():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"\u0104"})  # the byte 4 has no entry
    tokenizer.train_from_iterator([(ROOT / "LICENSE").read_text(encoding="utf-8")], trainers.BpeTrainer(
        vocab_size=600, special_tokens=MARKS[:3], initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS[3:]])
    return tokenizer


def llama(rng) -> None:
    import gguf
    from gguf.quants import dequantize, quantize

    tokenizer = vocabulary()
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer = gguf.GGUFWriter(FOLDER / "llama.gguf", "llama")
    sizes = {"block_count": 2, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96}
    for name, size in sizes.items():
        writer.add_uint32(f"llama.{name}", size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in MARKS[:3] else 4 if t in MARKS else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in learnt])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    matrices = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64), "ffn_gate": (96, 64),
                "ffn_up": (96, 64), "ffn_down": (64, 96)}
    kinds, weights = ["Q4_1", "Q4_0", "Q8_0", "F16", "MXFP4", "Q4_1", "F32"], {}

    def add(name, shape, kind):
        kind = gguf.GGMLQuantizationType[kind]
        x = rng.standard_normal(shape).astype(np.float32) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        raw = quantize(x, kind)
        weights[name.removesuffix(".weight")] = dequantize(raw, kind).astype(float)
        writer.add_tensor(name, raw, raw_dtype=kind)

    add("token_embd.weight", (len(tokens), 64), "Q8_0")
    for block in range(2):
        for i, (name, shape) in enumerate(matrices.items()):
            add(f"blk.{block}.{name}.weight", shape, kinds[(i + 3 * block) % len(kinds)])
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{block}.{name}.weight", (64,), "F32")
    add("output_norm.weight", (64,), "F32")
    finish(writer)
    draw = random.Random(1)
    texts = ["Permission is hereby granted, free of charge", "I'll take 12,  or two\n\n\tok", "x'S 'sS's", "", " ",
             "<|im_start|>user<|im_end|>", "a <tool>s and a <tool>, <|im_end",
             *("".join(draw.choices(LETTERS, k=draw.randint(1, 20))) for _ in range(150))]
    content = {"tokens": [5, 300, 599, 1, 1, 77], "texts": {text: tokenizer.encode(text, add_special_tokens=False).ids for text in texts}}
    content["logits"] = [[round(x, 5) for x in row] for row in logits(weights, content["tokens"])[:, ::7].tolist()]
    (FOLDER / "llama.json").write_text(json.dumps(content))


def logits(w, tokens):
    """The model, one token and one head at a time, in float64; every pair (2i, 2i + 1) is a complex number, which its position turns."""

    def norm(x, gain):
        return x / np.sqrt((x * x).mean() + 1e-5) * gain

    def turned(x, position):
        z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * 100000.0 ** (-np.arange(8) / 8))
        return np.stack([z.real, z.imag], -1).ravel()

    seen, result = {}, []
    for position, token in enumerate(tokens):
        x = w["token_embd"][token]
        for b in ("blk.0.", "blk.1."):
            h = norm(x, w[b + "attn_norm"])
            q, k, v = ((w[b + name] @ h).reshape(-1, 16) for name in ("attn_q", "attn_k", "attn_v"))
            seen.setdefault(b, []).append(([turned(head, position) for head in k], v))
            heads = []
            for head in range(4):
                match = np.array([turned(q[head], position) @ keys[head // 2] for keys, _ in seen[b]]) / 4
                p = np.exp(match - match.max())
                heads.append(sum(share * values[head // 2] for share, (_, values) in zip(p / p.sum(), seen[b])))
            x = x + w[b + "attn_output"] @ np.concatenate(heads)
            h = norm(x, w[b + "ffn_norm"])
            gate = w[b + "ffn_gate"] @ h
            x = x + w[b + "ffn_down"] @ (gate / (1 + np.exp(-gate)) * (w[b + "ffn_up"] @ h))
        result.append(w["token_embd"] @ norm(x, w["output_norm"]))
    return np.array(result)


def finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    blocks(np.random.default_rng(1))
    llama(np.random.default_rng(2))
    sys.stdout.write(f"{FOLDER}\n")
