#!/usr/bin/env python3
"""Makes tests/golden/tokenizer: small tokenizers of the published kinds and the ids that the `tokenizers` package gives
for hard strings.

usage: make_tokenizer_golden.py [OUTPUT_DIRECTORY]      needs the Python package tokenizers
"""
import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS = "<｜begin▁of▁sentence｜>"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
]
DEEPSEEK_LLM = [r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+"]

CORPUS = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, 1813.",
    "for (int i = 0; i < 1024; ++i) {\n\treturn x[i] * 3.14159;\n}\n\n", "漢字仮名 漢字 emoji 😀😀 123 4567 89", "привет мир שלום عليكم",
] * 8

STRINGS = [
    "", " ", "   ", "\n", "\n\n\n", " \n \n ", "\t\t x", "a", "Hello, world!", "it's we'll I'VE they'D don't", "'s 't 're",
    "x" * 300, " " * 100, "\r\n\r\n a\r\nb", "\u00a0\u3000\u2028\u2029\u0085 nbsp", "1234567890 12 3.14e-5 ١٢٣ ½ Ⅷ ①",
    "漢字かな交じり文、カタカナ。", "한국어 텍스트", "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 end", "e\u0301a\u0300 combining", "שלום مرحبا",
    "\x00\x01\x7f\u200b\ufeff\u202e", "naïve café Œuvre ſ ß", "𝐀𐐀 astral", BOS + "text" + BOS, "a<special>b", "a <special> b",
    "  <special>  ", "<special>\u200d", "<spec", "<|tool|><|tool|>x", "#include <vector>\nint main() { return 0; }\n",
    "snake_case camelCase kebab-case", "https://example.org/a?b=c&d=%20", "((((((]]]]]]", "....,,,,;;;;",
]


def split(patterns):
    return [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


KINDS = {
    "gpt2": byte_level(use_regex=True),
    "gpt2_prefix_space": byte_level(use_regex=True, add_prefix_space=True),
    "llama3": pre_tokenizers.Sequence([*split([LLAMA3]), byte_level()]),
    "deepseek_v3": pre_tokenizers.Sequence([*split(DEEPSEEK_V3), byte_level()]),
    "deepseek_llm": pre_tokenizers.Sequence([*split(DEEPSEEK_LLM), pre_tokenizers.Digits(individual_digits=True), byte_level()]),
    "behaviors": pre_tokenizers.Sequence([
        pre_tokenizers.Split(" ", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"\p{P}"), "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\p{Nd}"), "contiguous"),
        pre_tokenizers.Split("q", "removed"),
        pre_tokenizers.Split(Regex(r"[a-m]+"), "isolated", invert=True),
        pre_tokenizers.Digits(individual_digits=False),
        byte_level(use_regex=True),
    ]),
}


def random_string(rng):
    pools = STRINGS[8:]
    return "".join(rng.choice(pools)[rng.randint(0, 5):][:rng.randint(1, 12)] for _ in range(rng.randint(1, 8)))


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "tests/golden/tokenizer")
    rng = random.Random(7)
    strings = STRINGS + [random_string(rng) for _ in range(60)]
    for name, pre_tokenizer in KINDS.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
            vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[BOS]))
        tokenizer.add_tokens([
            AddedToken("<special>", special=True, normalized=False, lstrip=name == "llama3", rstrip=name == "llama3",
                       single_word=name == "deepseek_v3"),
            AddedToken("<|tool|>", normalized=False),
        ])
        if not name.startswith("gpt2"):
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        expected = [{"text": s, "ids": tokenizer.encode(s).ids,
                     "plain_ids": tokenizer.encode(s, add_special_tokens=False).ids,
                     "decoded": tokenizer.decode(tokenizer.encode(s).ids)} for s in strings]
        (directory / "expected.json").write_text(json.dumps(expected, ensure_ascii=True))


main()
