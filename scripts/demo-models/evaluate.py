#!/usr/bin/env python3
"""Asks a running server about the held-out sets, and counts what is right.

    evaluate.py http://127.0.0.1:8080/v1 --json figures.json

Standard library only; any server with OpenAI's chat completions and transcriptions will do.
"""

import argparse
import base64
import collections
import concurrent.futures
import json
import statistics
import sys
import urllib.request
import uuid
from pathlib import Path

HELD_OUT = Path(__file__).resolve().parents[2] / "tests" / "heldout"
MODELS = {"pictures": "percept-demo-vlm", "sound": "percept-demo-whisper"}


# --- the sets --------------------------------------------------------------------------------


def read(kind):
    """The lines of a held-out set; what is asked about as a path, in `file`."""
    folder = HELD_OUT / kind
    lines = [json.loads(line) for line in next(folder.glob("*.jsonl")).read_text().splitlines()]
    for line in lines:
        name = line.get("picture") or line.get("sound")
        line["file"] = folder / name if name else None
    return lines


# --- asking ----------------------------------------------------------------------------------


def post(url, body, content_type):
    request = urllib.request.Request(
        url, body, {"Content-Type": content_type, "Authorization": "Bearer unused"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def messages(question):
    content = [{"type": "text", "text": question["question"]}]
    if question["file"]:
        data = base64.b64encode(question["file"].read_bytes()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    return [{"role": "user", "content": content}]


def ask(base_url, question, model=MODELS["pictures"]):
    body = {"model": model, "messages": messages(question), "temperature": 0, "max_tokens": 64}
    answer = post(f"{base_url}/chat/completions", json.dumps(body).encode(), "application/json")
    return answer["choices"][0]["message"]["content"]


def transcribe(base_url, clip, model=MODELS["sound"], **fields):
    """The transcript, with words and their times."""
    fields = {
        "model": model,
        "response_format": "verbose_json",
        "timestamp_granularities[]": "word",
        **fields,
    }
    mark = uuid.uuid4().hex
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{clip["file"].name}"\r\n'
        "Content-Type: audio/flac\r\n\r\n"
    )
    body = (
        "".join(parts).encode() + head.encode() + clip["file"].read_bytes() + f"\r\n--{mark}--\r\n".encode()
    )
    return post(f"{base_url}/audio/transcriptions", body, f"multipart/form-data; boundary={mark}")


def all_at_once(function, items, concurrency):
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(function, items))


# --- counting --------------------------------------------------------------------------------


def fold(text):
    """Case, punctuation and spacing do not count."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def edits(wanted, found):
    """The least number of words to change, leave out or put in."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def word_errors(wanted, found):
    """(edits, words) of a transcript."""
    wanted = fold(wanted).split()
    return edits(wanted, fold(found).split()), len(wanted)


def score_pictures(questions, answers):
    """{kind: (right, asked)}; an answer is right or it is not."""
    groups = collections.defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        right = fold(answer) == fold(question["answer"])
        names = [question["kind"], "all"] + (["new phrasings"] if question["new_phrasing"] else [])
        for name in names:
            groups[name].append(right)
    return {name: (sum(rights), len(rights)) for name, rights in sorted(groups.items())}


def score_sound(clips, transcripts):
    """{kind: (edits, words)} of what is said; {kind: (empty, clips)} where nothing is."""
    errors, empty = collections.defaultdict(lambda: [0, 0]), [0, 0]
    for clip, transcript in zip(clips, transcripts, strict=True):
        if not clip["text"]:
            empty[0] += not fold(transcript)
            empty[1] += 1
            continue
        for i, count in enumerate(word_errors(clip["text"], transcript)):
            errors[clip["kind"]][i] += count
    return {kind: tuple(counts) for kind, counts in sorted(errors.items())}, tuple(empty)


def late(clips, answers):
    """By how many seconds each word of a rightly heard clip seems to begin late, sizes only."""
    found = []
    for clip, answer in zip(clips, answers, strict=True):
        words = answer.get("words") or []
        if fold(clip["text"]) == fold(answer["text"]) and len(words) == len(clip["words"]):
            found += [
                abs(word["start"] - start)
                for word, (_, start) in zip(words, clip["words"], strict=True)
                if start is not None
            ]
    return found


# --- the command -----------------------------------------------------------------------------


def pictures(base_url, model, concurrency, wrong):
    questions = read("pictures")
    answers = all_at_once(lambda q: ask(base_url, q, model), questions, concurrency)
    for question, answer in zip(questions, answers, strict=True):
        if wrong and fold(answer) != fold(question["answer"]):
            print(
                f"{question['picture']} {question['kind']}: {question['question']} {answer!r}, "
                f"right: {question['answer']!r}"
            )
    return {
        f"pictures, {kind}": [right, asked, "right"]
        for kind, (right, asked) in score_pictures(questions, answers).items()
    }


def sounds(base_url, model, concurrency, wrong):
    clips = [clip for clip in read("sound") if clip["kind"] != "long"]
    answers = all_at_once(lambda clip: transcribe(base_url, clip, model), clips, concurrency)
    for clip, answer in zip(clips, answers, strict=True):
        if wrong and fold(answer["text"]) != fold(clip["text"]):
            print(f"{clip['sound']} {clip['kind']}: {answer['text']!r}, right: {clip['text']!r}")
    errors, empty = score_sound(clips, [answer["text"] for answer in answers])
    rows = {f"sound, {kind}": [*counts, "WER"] for kind, counts in errors.items()}
    rows["sound, silence or noise"] = [*empty, "empty"]
    for clip in (clip for clip in read("sound") if clip["kind"] == "long"):
        for mode in ("sequential", "parallel"):
            answer = transcribe(base_url, clip, model, mode=mode)
            if wrong:
                print(f"long, {mode}: {answer['text']!r}")
            rows[f"sound, long, {mode}"] = [*word_errors(clip["text"], answer["text"]), "WER"]
    starts = late(clips, answers)
    if len(starts) > 1:
        off = [round(statistics.median(starts), 3), round(statistics.quantiles(starts, n=20)[-1], 3)]
        rows["sound, starts of words: median, 95th percentile"] = [*off, "seconds off"]
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base_url", help="such as http://127.0.0.1:8080/v1")
    parser.add_argument(
        "--vlm", default=MODELS["pictures"], help="name of the picture model; '' skips pictures"
    )
    parser.add_argument("--whisper", default=MODELS["sound"], help="name of the speech model; '' skips sound")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once")
    parser.add_argument("--wrong", action="store_true", help="print what is wrong")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    base_url, rows = options.base_url.rstrip("/"), {}
    for model, measure in ((options.vlm, pictures), (options.whisper, sounds)):
        if model:
            rows |= measure(base_url, model, options.concurrency, options.wrong)
    for name, (part, whole, unit) in rows.items():
        share = "" if unit == "seconds off" else f"{100 * part / max(1, whole):7.1f} %"
        print(f"{name:50} {part:6} / {whole:<6} {share:9} {unit}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
