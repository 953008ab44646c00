//! Decoding by the program ffmpeg, where the operator allows it.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use super::{
    Block, Decoder, RATE, SoundError,
    wav::{self, Opened, Wav},
};

/// Demuxers of sound and films. Not those that open other files or addresses: playlists, concatenations, pictures.
const DEMUXERS: &str = "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,dtshd,eac3,flac,flv,g722,gsm,matroska,\
                        webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,rm,tak,truehd,tta,voc,w64,wav,wv";

/// How long it may give nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that are passed on at once.
const CHUNK: usize = 1 << 16;

/// A running ffmpeg, which is killed when this is dropped.
pub(super) struct Ffmpeg {
    wav: Option<Wav<Output>>,
    output: Option<Output>,
    _child: Running,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ffmpeg {
    /// Starts ffmpeg on a file, for so many seconds of its first sound track.
    pub(super) fn start(program: &Path, file: File, seconds: f64) -> Result<Self, SoundError> {
        // One second more, so that the limit is seen to be passed.
        let most = (seconds + 1.0).min(1e6).to_string();
        let mut child = Command::new(program)
            .args(["-nostdin", "-hide_banner", "-v", "quiet", "-threads", "1"])
            .args(["-protocol_whitelist", "file", "-format_whitelist", DEMUXERS])
            // Its own standard input, opened as a file so that it can seek.
            .args(["-i", "file:/dev/stdin", "-map", "0:a:0", "-t", &most])
            .args(["-ar", &RATE.to_string(), "-c:a", "pcm_s16le", "-f", "wav", "pipe:1"])
            .env_clear()
            .stdin(Stdio::from(file))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take();
        let child = Running(child);
        let stdout = stdout.ok_or_else(|| io::Error::other("ffmpeg has no output"))?;
        Ok(Self { wav: None, output: Some(Output::new(stdout)), _child: child })
    }
}

impl Decoder for Ffmpeg {
    fn next(&mut self, block: &mut Block) -> Result<bool, SoundError> {
        if let Some(output) = self.output.take() {
            self.wav = match wav::open(output) {
                Ok(Opened::Pcm(wav)) => Some(wav),
                Err(SoundError::Io(error)) => return Err(SoundError::Io(error)),
                // It gave no header.
                _ => return Err(SoundError::NotSound),
            };
        }
        self.wav.as_mut().map_or(Ok(false), |wav| wav.next(block))
    }

    fn total(&self) -> Option<f64> {
        None
    }
}

/// What ffmpeg writes, read by a thread of its own so that one that hangs does not keep its reader.
struct Output {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
}

impl Output {
    fn new(mut stdout: ChildStdout) -> Self {
        let (sender, chunks) = sync_channel(2);
        // Ends when the pipe does, which killing the program closes, or when nobody listens.
        thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                let read = stdout.read(&mut chunk).map(|count| {
                    chunk.truncate(count);
                    chunk
                });
                let last = !matches!(&read, Ok(chunk) if !chunk.is_empty());
                if sender.send(read).is_err() || last {
                    return;
                }
            }
        });
        Self { chunks, chunk: io::Cursor::default() }
    }
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.chunk.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        match self.chunks.recv_timeout(PATIENCE) {
            Ok(chunk) => self.chunk = io::Cursor::new(chunk?),
            Err(RecvTimeoutError::Timeout) => return Err(io::Error::other("ffmpeg does not answer")),
            Err(RecvTimeoutError::Disconnected) => return Ok(0),
        }
        self.chunk.read(buffer)
    }
}
