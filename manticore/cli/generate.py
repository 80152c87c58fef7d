"""Continue prompts with a model: a hybrid's folder, or any supported causal language model's.

Prompts come from --prompt (repeated) or, without it, from standard input, one for each line. Text
appears as it is made; with beams, when it is finished. Without beams it is sampled, unless the
temperature is 0.

Example:
    manticore generate runs/quickstart/model --prompt "The old man looked at the sea and"
    manticore generate runs/quickstart/model --prompt "Anna has 12 apples." --num-beams 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from manticore.cli.options import add_dry_run, add_out
from manticore.runs import write_json

TEMPERATURE, TOP_P = 0.8, 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore generate`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=60, help="length (60)")
    parser.add_argument(
        "--temperature",
        type=float,
        help=f"0: the most likely token ({TEMPERATURE}; with beams 0)",
    )
    parser.add_argument("--top-p", type=float, default=TOP_P, help=f"nucleus of sampling ({TOP_P})")
    parser.add_argument("--top-k", type=int, default=0, help="sample among so many; 0: all (0)")
    parser.add_argument("--num-beams", type=int, default=1, help="beams of a beam search (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    parser.add_argument("--tokenizer", help="folder or file, when the model's folder has none")
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    add_out(parser, what="JSON file for prompts and continuations")
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Generate and print; nothing is written without --out."""
    options = sampling_options(args)
    from manticore.cli import model_folder
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    model_folder.check_output_file(args.out, "generate")
    config = model_folder.read_config(args.model)
    tokenizer = model_folder.load_folder_tokenizer(args.model, args.tokenizer)
    model_folder.check_vocabulary(config, tokenizer)
    for prompt in args.prompt or []:
        model_folder.check_lengths(config, len(encode(prompt, tokenizer)) + args.max_new_tokens)
    if args.dry_run:
        print(model_folder.describe_model(config, args.max_new_tokens))
        print(f"would generate up to {args.max_new_tokens} tokens for each prompt: {options}")
        print(f"would write {args.out}" if args.out else "would write nothing")
        return 0
    model = model_folder.load_model(args.model, args.device)
    records = []
    for number, prompt in enumerate(prompts_of(args.prompt, sys.stdin)):
        ids = encode(prompt, tokenizer)
        model_folder.check_lengths(config, len(ids) + args.max_new_tokens)
        text = continue_prompt(model, tokenizer, ids, options, args.seed + number)
        records.append({"prompt": prompt, "text": text})
    if not records:
        raise ValueError("There is no prompt. Give --prompt TEXT, or text on standard input.")
    if args.out:
        model = str(args.model)
        settings = {**options, "seed": args.seed}
        record = {"verb": "generate", "model": model, "settings": settings, "samples": records}
        write_json(args.out, record)
    return 0


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Checked options for `generate`; beams search greedily unless a temperature is given."""
    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.num_beams > 1 else TEMPERATURE
    for option, value, allowed, is_allowed in (
        ("--max-new-tokens", args.max_new_tokens, "1 or more", args.max_new_tokens >= 1),
        ("--temperature", temperature, "0 or more", 0 <= temperature < float("inf")),
        ("--top-p", args.top_p, "above 0 and up to 1", 0 < args.top_p <= 1),
        ("--top-k", args.top_k, "0 (all) or more", args.top_k >= 0),
        ("--num-beams", args.num_beams, "1 or more", args.num_beams >= 1),
        ("--seed", args.seed, "0 or more", args.seed >= 0),
    ):
        if not is_allowed:
            raise ValueError(f"{option} {value}: allowed is {allowed}.")
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams}
    if temperature == 0:
        return {**options, "do_sample": False}
    sampling = {"temperature": temperature, "top_p": args.top_p, "top_k": args.top_k}
    return {**options, "do_sample": True, **sampling}


def prompts_of(given: list[str] | None, stream: Iterable[str]) -> Iterator[str]:
    """The prompts on the command line, else the lines of a stream that are not empty."""
    if given is not None:
        yield from given
        return
    for line in stream:
        if line.strip():
            yield line.rstrip("\n")


def encode(prompt: str, tokenizer: Any) -> list[int]:
    """Token ids of a prompt; an empty one starts where a document starts."""
    ids: list[int] = tokenizer(prompt).input_ids
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    if not ids and start is None:
        raise ValueError("The prompt is empty, and the tokenizer has no token to start with.")
    return ids or [start]


def continue_prompt(
    model: Any, tokenizer: Any, ids: list[int], options: dict[str, Any], seed: int
) -> str:
    """Print the text as it is made, return what is new; global random streams are restored."""
    import torch
    from transformers import TextStreamer

    from manticore.text.tokenizers import continuation

    streamer = None
    if options["num_beams"] == 1:  # beams are not decided before the end
        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    prompt = torch.tensor([ids], device=model.device)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pad_token_id=pad,
            streamer=streamer,
            **options,
        )
    text = continuation(tokenizer, output[0].tolist(), len(ids))
    if streamer is None:
        print(tokenizer.decode(ids, skip_special_tokens=True) + text, flush=True)
    return text
