//! Containers of packets: demuxed by symphonia, decoded by it or as Opus.

use std::{io, ops::Range};

use symphonia::{
    core::{
        codecs::{
            CodecParameters,
            audio::{
                AudioCodecParameters, AudioDecoder, AudioDecoderOptions,
                well_known::{CODEC_ID_AAC, CODEC_ID_OPUS, CODEC_ID_PCM_ALAW, CODEC_ID_PCM_MULAW},
            },
        },
        errors::Error,
        formats::{FormatOptions, FormatReader, Track, TrackType},
        io::{MediaSourceStream, MediaSourceStreamOptions},
        packet::Packet,
    },
    default::{
        formats::{
            AdtsReader, AiffReader, CafReader, FlacReader, IsoMp4Reader, MkvReader, MpaReader, OggReader,
            WavReader,
        },
        get_codecs,
    },
};

use super::{
    Block, Container, Decoder, MOST_CHANNELS, Section, Shared, SoundError, caf, codec, mkv, mp4,
    opus::{Head, OPUS_RATE, Opus},
};

/// Packets of the track in a row that may give no sound. Headers and filling do; a table that says four thousand
/// million empty packets must not keep a thread for hours.
const MOST_EMPTY: u32 = 1 << 14;
/// The same for packets of other tracks, as of a film whose sound begins late.
const MOST_OTHERS: u32 = 1 << 20;
/// Frames of a packet. FLAC's may have 65535; no other's are longer.
const MOST_PACKET: u64 = 1 << 16;

/// What a container says of its first sound track, and symphonia does not tell.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) track: u32,
    /// What its codec is called.
    pub(super) codec: String,
    /// Seconds to leave out at the start.
    pub(super) skip: Option<f64>,
    /// Seconds to keep behind those.
    pub(super) keep: Option<f64>,
    /// Bytes that the file should have; more than it has where it broke off.
    pub(super) length: u64,
}

/// A track of packets.
pub(super) struct Packets {
    reader: Box<dyn FormatReader>,
    track: u32,
    codec: Codec,
    trim: Trim,
    total: Option<f64>,
}

enum Codec {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<Opus>),
}

/// What is left out at the start and the end of a track.
enum Trim {
    /// In seconds, until the rate is known.
    Seconds {
        skip: f64,
        keep: Option<f64>,
    },
    Frames {
        skip: u64,
        keep: u64,
    },
}

impl Packets {
    /// Opens a part of a source.
    pub(super) fn open(container: Container, shared: &Shared, part: Range<u64>) -> Result<Self, SoundError> {
        let told = match container {
            Container::Mp4 => mp4::first_sound(&mut shared.section(part.clone())?)?,
            Container::Mkv => mkv::first_sound(&mut shared.section(part.clone())?)?,
            _ => None,
        };
        let length = told.as_ref().map_or(0, |told| told.length);
        let patch = match container {
            Container::Caf => caf::true_size(&mut shared.section(part.clone())?)?,
            _ => None,
        };
        let section = || {
            let section = shared.section(part.clone())?.stretched(length);
            io::Result::Ok(match patch {
                Some((offset, bytes)) => section.patched(offset, bytes),
                None => section,
            })
        };
        let reader = match reader(container, section()?) {
            // Readers that can seek look at the end first, which a file that broke off has not got.
            Err(Error::IoError(_)) => reader(container, section()?.forward_only()),
            read => read,
        };
        let reader = reader.map_err(|error| failed(&error, told.as_ref()))?;
        let track = sound_track(reader.as_ref(), told.as_ref())?;
        let params = audio(track).ok_or(SoundError::NoAudio)?;
        let head =
            params.extra_data.as_deref().and_then(|head| Head::read(head, container == Container::Mp4));
        let pre_skip = head.map_or(0.0, |head| f64::from(head.pre_skip) / f64::from(OPUS_RATE));
        // Some muxers count Opus' delay in samples of what went in. Its own head is right.
        let skip = told.as_ref().and_then(|told| told.skip).unwrap_or(0.0).max(pre_skip);
        Ok(Self {
            codec: Codec::new(params, head, told.as_ref())?,
            track: track.id,
            trim: Trim::Seconds { skip, keep: told.and_then(|told| told.keep) },
            total: total(reader.as_ref(), track),
            reader,
        })
    }

    /// The next packet of the track.
    fn packet(&mut self) -> Result<Option<Packet>, SoundError> {
        for _ in 0..MOST_OTHERS {
            match self.reader.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track => return Ok(Some(packet)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                // Another sound is joined to the end of the first.
                Err(Error::ResetRequired) => self.change_track()?,
                Err(error) => return Err(failed(&error, None)),
            }
        }
        Err(SoundError::broken("its sound does not begin"))
    }

    fn change_track(&mut self) -> Result<(), SoundError> {
        let track = sound_track(self.reader.as_ref(), None)?;
        let params = audio(track).ok_or(SoundError::NoAudio)?;
        let head = params.extra_data.as_deref().and_then(|head| Head::read(head, false));
        let skip = head.map_or(0.0, |head| f64::from(head.pre_skip) / f64::from(OPUS_RATE));
        self.codec = Codec::new(params, head, None)?;
        self.track = track.id;
        self.trim = Trim::Seconds { skip, keep: None };
        Ok(())
    }
}

impl Decoder for Packets {
    fn next(&mut self, block: &mut Block) -> Result<bool, SoundError> {
        for _ in 0..MOST_EMPTY {
            let Some(packet) = self.packet()? else { return Ok(false) };
            self.codec.decode(&packet, block)?;
            if block.channels.len() > MOST_CHANNELS {
                return Err(SoundError::Channels { found: block.channels.len(), limit: MOST_CHANNELS });
            }
            if !self.trim.cut(block) {
                return Ok(false);
            }
            if block.frames() > 0 {
                return Ok(true);
            }
        }
        Err(SoundError::broken("its packets have no sound in them"))
    }

    fn total(&self) -> Option<f64> {
        self.total
    }
}

impl Codec {
    fn new(
        params: &AudioCodecParameters,
        head: Option<Head>,
        told: Option<&Told>,
    ) -> Result<Self, SoundError> {
        if params.codec == CODEC_ID_OPUS {
            let head = head.ok_or_else(|| SoundError::broken("it does not say how its Opus is encoded"))?;
            return Ok(Self::Opus(Box::new(Opus::new(head)?)));
        }
        // Decoders take memory for a whole packet.
        if params.max_frames_per_packet.is_some_and(|frames| frames > MOST_PACKET) {
            return Err(SoundError::broken("its packets are too long"));
        }
        let mut params = params.clone();
        if [CODEC_ID_PCM_ALAW, CODEC_ID_PCM_MULAW].contains(&params.codec) {
            // Containers state the eight bits that are written, and the decoder asks for the sixteen that they mean.
            (params.bits_per_sample, params.bits_per_coded_sample) = (None, None);
        }
        match get_codecs().make_audio_decoder(&params, &AudioDecoderOptions::default()) {
            Ok(decoder) => Ok(Self::Symphonia(decoder)),
            Err(Error::Unsupported(_)) if params.codec == CODEC_ID_AAC => {
                let config = params.extra_data.as_deref().unwrap_or_default();
                Err(SoundError::codec(codec::of_aac(config)))
            }
            Err(Error::Unsupported(_)) => {
                let name = told.map(|told| told.codec.clone());
                Err(SoundError::codec(name.unwrap_or_else(|| codec::of_id(params.codec))))
            }
            Err(error) => Err(failed(&error, told)),
        }
    }

    /// Decodes a packet; one that is broken gives no frames.
    fn decode(&mut self, packet: &Packet, block: &mut Block) -> Result<(), SoundError> {
        match self {
            Self::Opus(opus) => {
                opus.decode(&packet.data, block);
                let keep = block.frames().saturating_sub(packet.trim_end.get() as usize);
                block.channels.iter_mut().for_each(|samples| samples.truncate(keep));
            }
            Self::Symphonia(decoder) => match decoder.decode(packet) {
                Ok(decoded) => {
                    block.rate = decoded.spec().rate();
                    decoded.copy_to_vecs_planar(&mut block.channels);
                }
                Err(Error::DecodeError(_) | Error::IoError(_) | Error::LimitError(_)) => {
                    block.channels.iter_mut().for_each(Vec::clear);
                }
                Err(error) => return Err(failed(&error, None)),
            },
        }
        Ok(())
    }
}

impl Trim {
    /// Takes from a block what is left out; false where the track is at its end.
    fn cut(&mut self, block: &mut Block) -> bool {
        if let Self::Seconds { skip, keep } = *self {
            if block.frames() == 0 {
                return true;
            }
            let frames = |seconds: f64| (seconds * f64::from(block.rate)).round() as u64;
            *self = Self::Frames { skip: frames(skip), keep: keep.map_or(u64::MAX, frames) };
        }
        let Self::Frames { skip, keep } = self else { return true };
        if *keep == 0 {
            return false;
        }
        let drop = (block.frames() as u64).min(*skip) as usize;
        let rest = ((block.frames() - drop) as u64).min(*keep) as usize;
        *skip -= drop as u64;
        *keep -= rest as u64;
        for samples in &mut block.channels {
            samples.drain(..drop);
            samples.truncate(rest);
        }
        true
    }
}

fn reader(container: Container, section: Section) -> Result<Box<dyn FormatReader>, Error> {
    // Seeking readers of Matroska want what its index points to, and a recording that broke off has not got that.
    let section = if container == Container::Mkv { section.forward_only() } else { section };
    let stream = MediaSourceStream::new(Box::new(section), MediaSourceStreamOptions::default());
    let options = FormatOptions::default();
    Ok(match container {
        Container::Wav => Box::new(WavReader::try_new(stream, options)?),
        Container::Mpeg => Box::new(MpaReader::try_new(stream, options)?),
        Container::Adts => Box::new(AdtsReader::try_new(stream, options)?),
        Container::Flac => Box::new(FlacReader::try_new(stream, options)?),
        Container::Ogg => Box::new(OggReader::try_new(stream, options)?),
        Container::Mkv => Box::new(MkvReader::try_new(stream, options)?),
        Container::Mp4 => Box::new(IsoMp4Reader::try_new(stream, options)?),
        Container::Aiff => Box::new(AiffReader::try_new(stream, options)?),
        Container::Caf => Box::new(CafReader::try_new(stream, options)?),
    })
}

/// The first sound track.
fn sound_track<'a>(reader: &'a dyn FormatReader, told: Option<&Told>) -> Result<&'a Track, SoundError> {
    if let Some(told) = told {
        let track = reader.tracks().iter().find(|track| track.id == told.track && audio(track).is_some());
        return track.ok_or_else(|| SoundError::codec(told.codec.clone()));
    }
    reader.first_track(TrackType::Audio).ok_or(SoundError::NoAudio)
}

fn audio(track: &Track) -> Option<&AudioCodecParameters> {
    track.codec_params.as_ref().and_then(CodecParameters::audio)
}

fn total(reader: &dyn FormatReader, track: &Track) -> Option<f64> {
    let seconds = |base: Option<symphonia::core::units::TimeBase>, duration: u64| {
        let base = base?;
        Some(duration as f64 * f64::from(base.numer.get()) / f64::from(base.denom.get()))
    };
    let media = reader.media_info();
    let of_track = track.duration.and_then(|duration| seconds(track.time_base, duration.get()));
    let of_media = || media.duration.and_then(|duration| seconds(media.time_base, duration.get()));
    of_track.or_else(of_media).filter(|seconds| *seconds > 0.0)
}

fn failed(error: &Error, told: Option<&Told>) -> SoundError {
    match error {
        Error::IoError(error) if error.raw_os_error().is_some() => SoundError::Io(error.kind().into()),
        Error::IoError(_) => SoundError::broken("it ends before it should"),
        Error::Unsupported(_) if told.is_some_and(|told| !told.codec.is_empty()) => {
            SoundError::codec(told.map(|told| told.codec.clone()).unwrap_or_default())
        }
        Error::DecodeError(reason) | Error::LimitError(reason) | Error::Unsupported(reason) => {
            SoundError::broken(*reason)
        }
        other => SoundError::broken(other.to_string()),
    }
}
