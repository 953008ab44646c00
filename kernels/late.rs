//! CUDA's libraries, loaded when a GPU is opened and not when the program starts: a build with CUDA also starts where
//! there is no driver, and computes on the CPU.
//!
//! cudarc can do that itself, but candle has it link the libraries, and it refuses both at once. So the program brings a
//! function of each name that cudarc declares ([`symbols.txt`](late/symbols.txt), written by `scripts/cuda-symbols.sh`),
//! one instruction that goes on where a table says. Until [`load`] has filled the table, a function answers with the
//! status that its library has for what is not there.

use std::{
    env,
    ffi::{CStr, c_void},
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use candle_core::{Result, bail};
use libloading::Library;

core::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/late.s")));

/// The library that has each function, and the function's name; in the order of the table.
const FUNCTIONS: &[(&str, &CStr)] = include!(concat!(env!("OUT_DIR"), "/late_functions.rs"));

unsafe extern "C" {
    /// Where the function of each name goes on.
    static percept_late_table: [AtomicPtr<c_void>; FUNCTIONS.len()];
}

/// The libraries: their names for cudarc, the files that have them, and whether nothing works without them. Those of the
/// toolkit carry the version of CUDA that the program was built for; their functions change with it.
const LIBRARIES: [(&str, &str, bool); 5] = [
    ("cuda", "libcuda.so.1", true),
    ("cublas", concat!("libcublas.so.", env!("PERCEPT_CUDA_MAJOR")), true),
    ("cublasLt", concat!("libcublasLt.so.", env!("PERCEPT_CUDA_MAJOR")), true),
    ("curand", "libcurand.so.10", true),
    // Compiles CUDA at run time, which nothing here does.
    ("nvrtc", concat!("libnvrtc.so.", env!("PERCEPT_CUDA_MAJOR")), false),
];

/// Loads CUDA's libraries, once; what it found out the first time it says again.
///
/// # Errors
/// When one that is needed is not there: its name, where it comes from, and what the loader said.
pub(crate) fn load() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    match LOADED.get_or_init(|| LIBRARIES.iter().try_for_each(|&library| fill(library))) {
        Ok(()) => Ok(()),
        Err(missing) => bail!("{missing}"),
    }
}

fn fill((name, file, needed): (&str, &str, bool)) -> std::result::Result<(), String> {
    let library = match open(file) {
        Ok(library) => library,
        Err(_) if !needed => return Ok(()),
        Err(error) if name == "cuda" => return Err(format!("there is no NVIDIA driver here ({error})")),
        Err(error) => {
            return Err(format!(
                "{file} of CUDA {} was not found ({error}): install it, or put it into a folder lib beside percept",
                env!("PERCEPT_CUDA_MAJOR")
            ));
        }
    };
    for (index, (owner, function)) in FUNCTIONS.iter().enumerate() {
        if *owner != name {
            continue;
        }
        // SAFETY: the address is kept and not called here; those who call it declare what it is, as they do for a
        // library that is linked. What an older library lacks stays what it was.
        if let Ok(address) = unsafe { library.get::<*mut c_void>(*function) } {
            // SAFETY: the table is as long as the list, and consists of addresses, which are read and written as a whole.
            let table = unsafe { &percept_late_table };
            table[index].store(*address, Ordering::Release);
        }
    }
    // Its functions are used until the program ends.
    std::mem::forget(library);
    Ok(())
}

/// Looks where the system's loader does, then where toolkits are, then beside the program.
fn open(file: &str) -> std::result::Result<Library, libloading::Error> {
    let beside = env::current_exe().ok().and_then(|program| Some(program.parent()?.join("lib")));
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let toolkits = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("lib64"));
    // SAFETY: NVIDIA's libraries, under the names that a linked program would load them by at its start; what they do
    // when they are loaded is what they would do then.
    let first = unsafe { Library::new(file) };
    first.or_else(|error| {
        // An absolute path alone is found, and nothing else of that name is.
        toolkits
            .chain(beside)
            .map(|folder| folder.join(file))
            .filter(|path| path.is_absolute() && path.is_file())
            // SAFETY: as above.
            .find_map(|path| unsafe { Library::new(path) }.ok())
            .ok_or(error)
    })
}
