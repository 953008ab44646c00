//! GPUs by name, and how much of their memory programs can use.

use std::str::FromStr;

use super::parse_bytes;

/// A GPU that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// What people call it.
    pub name: &'static str,
    /// Usable bytes.
    pub bytes: u64,
}

/// Known GPUs, the smallest first. The figures are what nvidia-smi gives as the total, which is less than the vendor's
/// round number: part of some memories checks the rest (ECC), and the driver keeps some.
pub const GPUS: &[Gpu] = &[
    // Sold as 24 GB.
    Gpu::new("a10g", 23_028),
    Gpu::new("l4", 23_034),
    Gpu::new("rtx4090", 24_564),
    Gpu::new("rtx3090", 24_576),
    // 40 GB.
    Gpu::new("a100-40", 40_960),
    // 48 GB.
    Gpu::new("l40s", 46_068),
    // 80 GB.
    Gpu::new("h100", 81_559),
    Gpu::new("a100", 81_920),
    // 141 GB.
    Gpu::new("h200", 143_771),
];

impl Gpu {
    const fn new(name: &'static str, mib: u64) -> Self {
        Self { name, bytes: mib << 20 }
    }
}

/// The memory of a GPU: of one that is known, by its name, or a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuMemory {
    /// The name or the size, as written.
    pub name: String,
    /// Usable bytes.
    pub bytes: u64,
}

impl FromStr for GpuMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As in RTX 4090 and A100_40.
        let plain: String =
            text.chars().filter(|char| !" -_".contains(*char)).collect::<String>().to_ascii_lowercase();
        let known = GPUS.iter().find(|gpu| gpu.name.replace('-', "") == plain);
        let bytes = known.map_or_else(|| parse_bytes(text), |gpu| Ok(gpu.bytes));
        match bytes {
            Ok(bytes) => Ok(Self { name: known.map_or(text, |gpu| gpu.name).to_owned(), bytes }),
            Err(_) => {
                let known: Vec<_> = GPUS.iter().map(|gpu| gpu.name).collect();
                Err(format!(
                    "{text} is neither a GPU that is known ({}) nor a size such as 24GiB",
                    known.join(", ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_known_by_name_or_by_size() {
        let bytes = |text: &str| text.parse::<GpuMemory>().map(|gpu| (gpu.name, gpu.bytes));
        assert_eq!(bytes("a10g"), Ok(("a10g".into(), 23_028 << 20)));
        for text in ["RTX 4090", "rtx-4090", "rtx4090"] {
            assert_eq!(bytes(text), Ok(("rtx4090".into(), 24_564 << 20)), "{text}");
        }
        assert_eq!(bytes("a100-40"), bytes("A100_40"));
        assert_eq!(bytes("20GiB"), Ok(("20GiB".into(), 20 << 30)));
        let error = bytes("gtx970").unwrap_err();
        assert!(GPUS.iter().all(|gpu| error.contains(gpu.name)), "{error}");
        assert!(GPUS.is_sorted_by_key(|gpu| gpu.bytes));
    }
}
