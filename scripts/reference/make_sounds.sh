#!/usr/bin/env bash
# Writes tests/fixtures/sound: the same speech in every container and codec that clients send, and what ffmpeg decodes
# each to (16 kHz, one channel): its length and two windows of samples, in expected.json.
#
#   apt-get install ffmpeg
#   scripts/reference/make_sounds.sh
#
# Made with ffmpeg 5.1. Other versions of its encoders give other bytes.
set -euo pipefail
cd "$(dirname "$0")/../.."
speech=tests/fixtures/inputs/speechlike_3s.wav
out=tests/fixtures/sound
rm -rf "$out" && mkdir -p "$out"

make() { # name, then what to make it with
    local name=$1
    shift
    ffmpeg -nostdin -v error -y -i "$speech" -map_metadata -1 -fflags +bitexact -flags:a +bitexact "$@" "$out/$name"
}

# WAV. Short, because they are large.
make u8.wav -t 0.5 -c:a pcm_u8
make s16.wav -t 0.5 -c:a pcm_s16le
make s24.wav -t 0.3 -c:a pcm_s24le
make s32.wav -t 0.25 -c:a pcm_s32le
make f32.wav -t 0.25 -c:a pcm_f32le
make f64.wav -t 0.1 -c:a pcm_f64le
make mulaw_8k.wav -ar 8000 -c:a pcm_mulaw
make alaw_8k.wav -t 1 -ar 8000 -c:a pcm_alaw
make stereo_48k.wav -t 0.1 -ar 48000 -af 'pan=stereo|c0=c0|c1=0.25*c0' -c:a pcm_s16le
make six_channels.wav -t 0.1 -af 'pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0' -c:a pcm_s16le
make 11k.wav -t 0.5 -ar 11025 -c:a pcm_s16le
make ima_adpcm.wav -t 1 -c:a adpcm_ima_wav
make ms_adpcm.wav -t 1 -c:a adpcm_ms
make mp3.wav -t 1 -c:a libmp3lame -b:a 24k
make rf64.wav -t 0.25 -rf64 always -c:a pcm_s16le
# Sizes that a recorder did not know: ffmpeg leaves 0xffffffff where it cannot seek back.
ffmpeg -nostdin -v error -i "$speech" -t 0.5 -map_metadata -1 -fflags +bitexact -c:a pcm_s16le -f wav pipe:1 >"$out/streamed.wav"

# MPEG audio, one with a cover picture in front.
ffmpeg -nostdin -v error -y -i "$speech" -i tests/fixtures/inputs/land_90x60.png -map 0:a -map 1:v -c:v copy \
    -c:a libmp3lame -b:a 24k -ar 16000 -id3v2_version 3 -metadata title=Speech "$out/cover.mp3"
make vbr_44k_stereo.mp3 -ar 44100 -ac 2 -c:a libmp3lame -q:a 9
make 11k.mp3 -ar 11025 -c:a libmp3lame -b:a 16k -write_xing 0
make layer2.mp2 -t 1 -ar 32000 -c:a mp2 -b:a 32k

# FLAC
make 16k.flac -t 1 -c:a flac
make 44k_stereo_24.flac -t 0.2 -ar 44100 -ac 2 -sample_fmt s32 -c:a flac

# Ogg
make vorbis.ogg -ar 44100 -c:a libvorbis -q:a 0
make flac.ogg -t 0.5 -c:a flac
make speech.opus -c:a libopus -b:a 12k -application voip
make wide.opus -c:a libopus -b:a 24k -application voip
make music_stereo.opus -ac 2 -ar 48000 -c:a libopus -b:a 32k -application audio
make low_delay.opus -t 1 -c:a libopus -b:a 24k -application lowdelay -frame_duration 2.5
make long_frames.opus -c:a libopus -b:a 16k -frame_duration 60
make speech_8k.opus -t 1 -ar 8000 -c:a libopus -b:a 8k

# Matroska. A browser's recording: no duration, no cues, sizes unknown.
ffmpeg -nostdin -v error -i "$speech" -map_metadata -1 -fflags +bitexact -c:a libopus -b:a 24k -f webm -live 1 pipe:1 \
    >"$out/browser.webm"
make opus.webm -c:a libopus -b:a 16k
make vorbis.mka -ar 32000 -c:a libvorbis -q:a 0
make pcm.mka -t 0.25 -c:a pcm_s16le
video=(-f lavfi -i 'testsrc=size=64x48:rate=5:duration=3')
ffmpeg -nostdin -v error -y "${video[@]}" -i "$speech" -map 0:v -map 1:a -map_metadata -1 -fflags +bitexact -c:v mpeg4 -b:v 10k \
    -c:a aac -b:a 24k "$out/video.mkv"

# MP4
make voice.m4a -ar 44100 -c:a aac -b:a 32k
make fast_start.m4a -c:a aac -b:a 24k -movflags +faststart
make fragmented.mp4 -c:a aac -b:a 24k -movflags +frag_keyframe+empty_moov+default_base_moof -frag_duration 500000
ffmpeg -nostdin -v error -y "${video[@]}" -i "$speech" -map 0:v -map 1:a -map_metadata -1 -fflags +bitexact -c:v mpeg4 -b:v 10k \
    -c:a aac -b:a 24k -ac 2 "$out/video.mp4"
make alac.m4a -t 0.5 -c:a alac
make opus.mp4 -t 1 -ar 48000 -c:a libopus -b:a 16k
make flac.mp4 -t 0.5 -c:a flac -strict experimental
make mp3.mp4 -t 1 -ar 16000 -c:a libmp3lame -b:a 24k
make pcm.mov -t 0.25 -c:a pcm_s16le
make 24k.aac -ar 24000 -c:a aac -b:a 24k

# AIFF and CAF
make s16.aiff -t 0.25 -c:a pcm_s16be
make f32.aiff -t 0.25 -c:a pcm_f32be
make s16.caf -t 0.25 -c:a pcm_s16be
make mulaw_8k.caf -t 0.5 -ar 8000 -c:a pcm_mulaw
make alac.caf -t 0.5 -c:a alac

# What is told by name and not decoded.
make ac3.mp4 -t 0.5 -ar 32000 -c:a ac3 -b:a 32k
make ac3.ac3 -t 0.5 -ar 32000 -c:a ac3 -b:a 32k
make eac3.mkv -t 0.5 -ar 32000 -c:a eac3 -b:a 32k
make dts.mka -t 0.1 -ar 44100 -ac 2 -c:a dca -strict experimental -b:a 320k
make wma.wma -t 1 -c:a wmav2 -b:a 24k
make speex.ogg -t 1 -c:a libspeex
make gsm.wav -t 1 -ar 8000 -c:a libgsm_ms
make wavpack.wv -t 0.25 -c:a wavpack
ffmpeg -nostdin -v error -y "${video[@]}" -fflags +bitexact -c:v mpeg4 -b:v 10k -t 1 "$out/picture_only.mp4"

python3 - "$out" <<'END'
import json, pathlib, subprocess, sys

folder = pathlib.Path(sys.argv[1])
# Debian has no encoder for these two, so their headers are put in place of others'.
def patch(source, name, old, new):
    data = (folder / source).read_bytes()
    assert data.count(old) == 1, (name, data.count(old))
    (folder / name).write_bytes(data.replace(old, new))

# The descriptor of an AAC decoder's configuration: AAC-LC at 44.1 kHz, one channel, and SBR's signal behind it. HE-AAC
# says object type 5 first: 22.05 kHz, one channel, 44.1 kHz, then type 2.
lc = bytes.fromhex("12 08 56 e5 00")
patch("voice.m4a", "he_aac.m4a", lc, bytes.fromhex("2b 8a 08 00 00"))
# A narrow-band AMR file: its magic and four frames of silence at 12.2 kbit/s.
(folder / "speech.amr").write_bytes(b"#!AMR\n" + (b"\x3c" + bytes(31)) * 4)

files = {}
for file in sorted(folder.iterdir()):
    # ffmpeg's own Opus decoder is not the reference; its usual resampler lets aliases through near 8 kHz.
    decoder = ["-c:a", "libopus"] if "opus" in file.name or file.name == "browser.webm" else []
    resampler = ["-ac", "1", "-af", "aresample=16000:resampler=soxr:precision=28", "-ar", "16000"]
    command = ["ffmpeg", "-nostdin", "-v", "quiet", *decoder, "-i", file, "-map", "0:a:0", *resampler, "-f", "s16le", "pipe:1"]
    raw = subprocess.run(command, stdout=subprocess.PIPE).stdout
    count = len(raw) // 2
    at = [count // 4, count // 2]
    window = lambda start: [int.from_bytes(raw[2 * i : 2 * i + 2], "little", signed=True) for i in range(start, min(start + 128, count))]
    files[file.name] = {"samples": count, "at": at, "windows": [window(start) for start in at]}
text = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in files.items())
(folder / "expected.json").write_text("{\n" + text + "\n}\n")
END
du -cb "$out"/* | tail -1
