//! What codecs are called, for whoever sent one that is not decoded.

use symphonia::core::codecs::audio::{AudioCodecId, well_known};

/// By the format tag of a WAV file.
pub(super) fn of_wav(tag: u16, bits: u16) -> String {
    let name = match tag {
        0x0001 => return format!("PCM of {bits} bits"),
        0x0003 => return format!("floating-point PCM of {bits} bits"),
        0x0031 | 0x0032 => "GSM 06.10",
        0x0014 | 0x0040 | 0x0045 | 0x0064 => "G.726",
        0x0042 | 0x0111 => "G.723.1",
        0x0065 => "G.722",
        0x0083 => "G.729",
        0x00ff | 0x1600 | 0x1610 => "AAC in WAV",
        0x0160..=0x0163 => "WMA",
        0x2000 => "AC-3",
        0x2001 => "DTS",
        _ => return format!("WAV of format 0x{tag:04x}"),
    };
    name.to_owned()
}

/// By the sample entry of an MP4 file: <https://mp4ra.org/registered-types/codecs>.
pub(super) fn of_mp4(entry: [u8; 4]) -> String {
    let name = match &entry {
        b"mp4a" => "AAC",
        b"samr" => "AMR",
        b"sawb" | b"sawp" => "AMR-WB",
        b"ac-3" => "AC-3",
        b"ec-3" => "E-AC-3",
        b"ac-4" => "AC-4",
        b"dtsc" | b"dtsh" | b"dtsl" | b"dtse" | b"dtsx" => "DTS",
        b"mha1" | b"mhm1" => "MPEG-H",
        b"mlpa" => "TrueHD",
        b"sqcp" => "QCELP",
        b"sevc" => "EVRC",
        b"enca" => "encrypted",
        b"ima4" => "IMA ADPCM in QuickTime",
        _ => return format!("MP4 of codec {:?}", String::from_utf8_lossy(&entry)),
    };
    name.to_owned()
}

/// By the codec id of a Matroska file: <https://www.matroska.org/technical/codec_specs.html>.
pub(super) fn of_mkv(id: &str) -> String {
    let name = match id {
        "A_AC3" | "A_AC3/BSID9" | "A_AC3/BSID10" => "AC-3",
        "A_EAC3" => "E-AC-3",
        "A_TRUEHD" | "A_MLP" => "TrueHD",
        "A_WAVPACK4" => "WavPack",
        "A_TTA1" => "True Audio",
        "A_MS/ACM" => "Matroska of a Windows codec",
        "A_REAL/COOK" | "A_REAL/SIPR" | "A_REAL/RALF" | "A_REAL/ATRC" => "RealAudio",
        _ if id.starts_with("A_DTS") => "DTS",
        _ if id.starts_with("A_AAC") => "AAC",
        _ => return format!("Matroska of codec {:?}", id.chars().take(32).collect::<String>()),
    };
    name.to_owned()
}

/// By the configuration of an AAC decoder: ISO 14496-3, 1.6.2.1.
pub(super) fn of_aac(config: &[u8]) -> String {
    let bits = config.iter().take(4).fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
    let bits = bits << (8 * (4 - config.len().min(4)));
    let kind = match bits >> 27 {
        31 => 32 + (bits >> 21 & 0x3f),
        kind => kind,
    };
    let channels = bits >> 19 & 0xf;
    let name = match kind {
        1 => "AAC Main",
        2 if channels > 2 => return format!("AAC of {} channels", if channels == 7 { 8 } else { channels }),
        2 => "a variant of AAC-LC",
        3 => "AAC-SSR",
        4 => "AAC-LTP",
        5 => "HE-AAC",
        29 => "HE-AAC v2",
        23 => "AAC-LD",
        39 => "AAC-ELD",
        42 => "xHE-AAC",
        _ => return format!("AAC of object type {kind}"),
    };
    name.to_owned()
}

/// By symphonia's number, where the container gives no name.
pub(super) fn of_id(id: AudioCodecId) -> String {
    let names = [
        (well_known::CODEC_ID_SPEEX, "Speex"),
        (well_known::CODEC_ID_AC3, "AC-3"),
        (well_known::CODEC_ID_EAC3, "E-AC-3"),
        (well_known::CODEC_ID_DCA, "DTS"),
        (well_known::CODEC_ID_WMA, "WMA"),
        (well_known::CODEC_ID_WAVPACK, "WavPack"),
        (well_known::CODEC_ID_ADPCM_IMA_QT, "IMA ADPCM in QuickTime"),
        (well_known::CODEC_ID_MUSEPACK, "Musepack"),
        (well_known::CODEC_ID_TRUEHD, "TrueHD"),
    ];
    names
        .iter()
        .find(|(known, _)| *known == id)
        .map_or_else(|| format!("codec {id}"), |(_, name)| (*name).to_owned())
}
