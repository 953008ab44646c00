"""Videos of Qwen2.5-VL and Qwen2-VL: the part of `make_goldens.py` about frames.

usage: python video_goldens.py        (run make_models.py qwen2_5_vl qwen2_vl first)

Output: tests/fixtures/goldens/<name>_video/{manifest.json, tensors.safetensors}.

Positions follow the paper (https://arxiv.org/abs/2409.12191, 2.1): what comes behind a medium goes on from its largest
position in any plane. transformers 5.23 goes on from the largest of height and width, so that text behind a video
overlaps its later moments; where the two agree the network is run by transformers' own positions, too.
"""

import math

from make_goldens import (
    GOLDENS,
    MAX_NEW,
    PICTURES,
    Recorder,
    expand,
    margin_of,
    np,
    pattern,
    picture,
    resize_u8,
    to_float,
    torch,
    transformers,
    write_json,
    write_tensors,
)
from refcommon import encode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor


def frames_of(video):
    """Frame k is the test picture, seen from 7 k columns further to the right."""
    return [pattern(video["width"] + 7 * k, video["height"])[:, 7 * k :] for k in range(video["frames"])]


def video(width, height, frames, fps):
    return {"width": width, "height": height, "frames": frames, "fps": fps}


def user(*parts):
    kinds = {"V": {"type": "video"}, "P": {"type": "image"}}
    return [{"role": "user", "content": [kinds.get(p, {"type": "text", "text": p}) for p in parts]}]


CASES = [
    # the last frame is shown twice
    ("odd_frames", user("V", "what is shown in this image?"), [], [video(84, 56, 3, 2.0)]),
    # moments of half a position
    ("fast", user("V", "list the differences between them."), [], [video(84, 56, 6, 8.0)]),
    # time reaches further than rows and columns; resized
    ("slow", user("V", "what is shown in this image?"), [], [video(90, 60, 4, 0.5)]),
    # a position and a third
    ("thirds", user("describe the picture", "V"), [], [video(56, 56, 11, 3.0)]),
    (
        "with_picture",
        user("P", "V", "compare them", "V", "in detail, please."),
        ["land"],
        [video(60, 90, 4, 2.0), video(84, 56, 1, 1.0)],
    ),
]


def units_of(width, height, pre):
    nh, nw = smart_resize(height, width, 28, pre["min_pixels"], pre["max_pixels"])
    return nh, nw


def patches(frames, pre):
    """Rows of the tower's input, and their grid."""
    height, width, _ = frames[0].shape
    nh, nw = units_of(width, height, pre)
    x = np.stack(
        [to_float(resize_u8(f, nw, nh, "bicubic"), pre["image_mean"], pre["image_std"]) for f in frames]
    )
    if len(x) % 2:
        x = np.concatenate([x, x[-1:]])
    t, gh, gw = len(x) // 2, nh // 14, nw // 14
    x = x.reshape(t, 2, 3, gh // 2, 2, 14, gw // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return torch.from_numpy(x.reshape(t * gh * gw, 3 * 2 * 14 * 14)), [t, gh, gw]


def check_processor(frames, rows, grid, pre):
    """transformers' own processor resizes with another library: equal where nothing is resized, else close."""
    keys = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    size = {"shortest_edge": pre["min_pixels"], "longest_edge": pre["max_pixels"]}
    processor = Qwen2VLVideoProcessor(size=size, **{k: pre[k] for k in keys})
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    data = processor([clip], return_tensors="pt", do_sample_frames=False)
    assert data["video_grid_thw"].tolist() == [grid]
    height, width, _ = frames[0].shape
    # without a resize the sums are done in another order, with one a level or two differ
    most = 1e-5 if units_of(width, height, pre) == (height, width) else 2.1 / 255 / min(pre["image_std"])
    assert (data["pixel_values_videos"] - rows).abs().max() <= most


def positions(ids, media, pace):
    """Of each row, in time, height and width; and the next one of text."""
    out, at, next_ = [], 0, 0
    media = iter(media)
    while at < len(ids):
        if ids[at] is None:
            t, h, w, interval = next(media)
            for k in range(t):
                time = int(np.float32(k) * np.float32(interval)) if pace else k
                out += [(next_ + time, next_ + y, next_ + x) for y in range(h) for x in range(w)]
            time = int(np.float32(t - 1) * np.float32(interval)) if pace else t - 1
            next_ += max(time + 1, h, w)
            at += t * h * w
        else:
            out.append((next_,) * 3)
            at, next_ = at + 1, next_ + 1
    return torch.tensor(out).T.contiguous(), next_


def goldens(name):
    rec = Recorder(name)
    pre = rec.pre
    kind = getattr(transformers, rec.config["architectures"][0])
    model = kind.from_pretrained(rec.path, attn_implementation="eager").eval()
    image_id, video_id = rec.config["image_token_id"], rec.config["video_token_id"]
    pace = rec.config["vision_config"].get("tokens_per_second") if name == "qwen2_5_vl" else None

    for case, messages, keys, videos in CASES:
        rendered = rec.render(messages)
        inputs, grids, features, media = {}, {image_id: [], video_id: []}, [], {image_id: [], video_id: []}
        if keys:
            found = [patches([np.asarray(picture(k))], pre) for k in keys]
            inputs["pixel_values"] = torch.cat([f[0] for f in found])
            inputs["image_grid_thw"] = torch.tensor([f[1] for f in found])
            grids[image_id] = [f[1] for f in found]
            media[image_id] = [(1, g[1] // 2, g[2] // 2, 1) for g in grids[image_id]]
            features += model.get_image_features(
                pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"]
            ).pooler_output
        clips = [frames_of(v) for v in videos]
        found = [patches(c, pre) for c in clips]
        for clip, (rows, grid) in zip(clips, found, strict=True):
            check_processor(clip, rows, grid, pre)
        inputs["pixel_values_videos"] = torch.cat([f[0] for f in found])
        inputs["video_grid_thw"] = torch.tensor([f[1] for f in found])
        grids[video_id] = [f[1] for f in found]
        intervals = [(pace or 0) * (2 / v["fps"]) for v in videos]
        media[video_id] = [
            (g[0], g[1] // 2, g[2] // 2, i) for g, i in zip(grids[video_id], intervals, strict=True)
        ]
        features += model.get_video_features(
            pixel_values_videos=inputs["pixel_values_videos"], video_grid_thw=inputs["video_grid_thw"]
        ).pooler_output
        rec.put(case, "features", torch.cat(list(features)))
        if case in ("odd_frames", "slow"):
            rec.put(case, "pixel_values_videos", inputs["pixel_values_videos"])

        ids = encode(rec.tok, rendered)
        order = [i for i in ids if i in (image_id, video_id)]
        for token in (image_id, video_id):
            ids, _ = expand(ids, token, [math.prod(g) // 4 for g in grids[token]])
        # None where a medium's rows are
        marked = [None if i in (image_id, video_id) else i for i in ids]
        left = {token: iter(list_) for token, list_ in media.items()}
        place, next_ = positions(marked, [next(left[i]) for i in order], pace)
        rec.put(case, "position_ids", place)

        types = torch.tensor([[{image_id: 1, video_id: 2}.get(i, 0) for i in ids]])
        extra = {"second_per_grid_ts": torch.tensor([2 / v["fps"] for v in videos], dtype=torch.float64)}
        theirs, _ = model.model.get_rope_index(
            torch.tensor([ids]),
            types,
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs["video_grid_thw"],
            **(extra if pace else {}),
        )
        beyond = any((int((t - 1) * i) if pace else t - 1) + 1 > max(h, w) for t, h, w, i in media[video_id])
        assert beyond or torch.equal(theirs[:, 0], place), case

        # greedy, everything again for each token: generate() would take positions of its own
        tokens, rows, row_ids, row_place = [], [], list(ids), place
        while len(tokens) < MAX_NEW and (not tokens or tokens[-1] not in rec.eos):
            token_types = torch.cat([types, torch.zeros(1, len(tokens), dtype=torch.long)], 1)
            logits = model(
                input_ids=torch.tensor([row_ids]),
                attention_mask=torch.ones(1, len(row_ids), dtype=torch.long),
                position_ids=row_place[:, None],
                mm_token_type_ids=token_types,
                use_cache=False,
                **inputs,
            ).logits[0]
            if not tokens:
                rec.put(case, "logits_last", logits[-1])
            rows.append(logits[-1])
            tokens.append(int(logits[-1].argmax()))
            row_ids.append(tokens[-1])
            row_place = torch.cat([row_place, torch.full((3, 1), next_ + len(tokens) - 1)], 1)
        rec.add(
            case,
            messages=messages,
            rendered=rendered,
            images=[PICTURES[k][0] for k in keys],
            videos=videos,
            input_ids=ids,
            greedy_tokens=tokens,
            next_position=next_,
            min_margin=margin_of(torch.stack(rows), tokens),
        )

    out = GOLDENS / f"{name}_video"
    out.mkdir(parents=True, exist_ok=True)
    rec.manifest["stop_token_ids"] = rec.eos
    write_tensors(out / "tensors.safetensors", rec.tensors)
    write_json(out / "manifest.json", rec.manifest)
    low = min(c["min_margin"] for c in rec.manifest["cases"])
    print(f"{name}_video: {len(CASES)} cases, smallest margin {low:.4f}")


if __name__ == "__main__":
    for model_name in ("qwen2_5_vl", "qwen2_vl"):
        goldens(model_name)
