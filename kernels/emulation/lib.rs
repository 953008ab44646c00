//! Runs the CUDA versions of the kernels on the CPU, for tests: every thread for itself, in an order that a seed shuffles.
//!
//! The kernel files are compiled as C++ against `emulation.h`. Every access is checked before it is made: whether it is
//! inside of a buffer, whether what it reads was written, and whether a barrier orders it against what other threads do.
//! Speed, the caches and the memory model between blocks are not what this can show.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    marker::PhantomData,
};

pub use faults::{FAULTS, Fault};
use percept_kernels::launch::{Element, Launch};

mod faults;

/// A folder with `libcuda.so.1` and the like: a driver whose device is this emulation. What is built for GPUs runs on it,
/// where the loader finds it first (`LD_LIBRARY_PATH`).
pub const DRIVER: &str = env!("PERCEPT_EMULATED_DRIVER");

// SAFETY: the signatures are those of emulation.cpp.
unsafe extern "C" {
    fn emu_alloc(bytes: usize, granule: u32, name: *const c_char) -> *mut u8;
    fn emu_free(memory: *mut u8);
    fn emu_mark_init(memory: *mut u8);
    fn emu_uninit(memory: *mut u8) -> usize;
    fn emu_ldmatrix_conflicts() -> f64;
    fn emu_kernel_name(number: usize) -> *const c_char;
    fn emu_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        arguments: *mut *mut c_void,
        sizes: *const u32,
        count: u32,
        seed: u64,
        error: *mut u8,
        error_size: usize,
    ) -> i32;
}

/// What may lie in a buffer.
pub trait Value: Copy + sealed::Plain {}
impl<T: Copy + sealed::Plain> Value for T {}

mod sealed {
    /// Types without padding or pointers, of which every bit pattern is valid.
    pub trait Plain {}
    impl Plain for i32 {}
    impl Plain for u32 {}
    impl Plain for u8 {}
    impl Plain for f32 {}
    impl Plain for half::bf16 {}
    impl Plain for half::f16 {}
}

/// An element type of activations.
pub trait Real: Value {
    /// As launches name it.
    const ELEMENT: Element;
    /// Distance from 1 to the next number.
    const EPSILON: f64;
    /// Widens.
    fn wide(self) -> f64;
    /// Rounds.
    fn narrow(value: f64) -> Self;
}

macro_rules! real {
    ($type:ty, $element:ident, $epsilon:expr, $wide:expr, $narrow:expr) => {
        impl Real for $type {
            const ELEMENT: Element = Element::$element;
            const EPSILON: f64 = $epsilon;

            fn wide(self) -> f64 {
                $wide(self)
            }

            fn narrow(value: f64) -> Self {
                $narrow(value)
            }
        }
    };
}

real!(f32, F32, f32::EPSILON as f64, f64::from, |value| value as f32);
real!(half::bf16, BF16, 1.0 / 128.0, half::bf16::to_f64, |value| half::bf16::from_f32(value as f32));
real!(half::f16, F16, 1.0 / 1024.0, half::f16::to_f64, |value| half::f16::from_f32(value as f32));

/// Device memory, which belongs to the thread that made it.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: *mut u8,
    length: usize,
    values: PhantomData<T>,
}

impl<T: Value> Buffer<T> {
    /// Uninitialised; reading an element before it is written is reported under this name.
    #[must_use]
    pub fn new(length: usize, name: &str) -> Self {
        let name = CString::new(name).expect("a name has no NUL");
        let granule = size_of::<T>().trailing_zeros();
        // SAFETY: the name ends in NUL; the emulation copies it.
        let memory = unsafe { emu_alloc(length * size_of::<T>(), granule, name.as_ptr()) };
        Self { memory, length, values: PhantomData }
    }

    /// With these values.
    #[must_use]
    pub fn of(values: &[T], name: &str) -> Self {
        let buffer = Self::new(values.len(), name);
        // SAFETY: the buffer has room for `values.len()` elements, and nobody else has it yet.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr().cast(), buffer.memory, size_of_val(values));
            emu_mark_init(buffer.memory);
        }
        buffer
    }

    /// Of the element at `index`.
    #[must_use]
    pub fn at(&self, index: usize) -> u64 {
        self.memory as u64 + (index * size_of::<T>()) as u64
    }

    /// Of the first element.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.at(0)
    }

    /// What kernels have written.
    ///
    /// # Errors
    /// When some element was never written.
    pub fn read(&self) -> Result<Vec<T>, String> {
        // SAFETY: the buffer is alive.
        let unwritten = unsafe { emu_uninit(self.memory) };
        if unwritten > 0 {
            return Err(format!("{unwritten} of {} elements were never written", self.length));
        }
        // SAFETY: all elements are initialised, every bit pattern is valid, and the memory is aligned to 256 bytes.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.cast::<T>(), self.length) }.to_vec())
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: made by `emu_alloc` and freed once.
        unsafe { emu_free(self.memory) }
    }
}

/// Runs launches; with a fault, those of the faulty copy.
#[derive(Debug, Clone, Copy)]
pub struct Emulator {
    /// The order of threads and blocks, and errors as large as those of a GPU's approximations; 0 for none of that.
    pub seed: u64,
    /// The name of a fault in [`FAULTS`].
    pub fault: Option<&'static str>,
}

impl Emulator {
    /// Runs one launch to its end. An address that is in no buffer of this thread is reported when it is used.
    ///
    /// # Errors
    /// The first thing that is wrong: an access, a race, a barrier that not all threads reach, a trap, or arguments
    /// that are not the kernel's.
    pub fn run(self, launch: &Launch) -> Result<(), String> {
        let name = match self.fault {
            Some(fault) => format!("{fault}:{}", launch.kernel),
            None => launch.kernel.clone(),
        };
        let name = CString::new(name).expect("kernels have names without NUL");
        let mut words: Vec<u64> = launch.arguments.iter().map(|argument| argument.word()).collect();
        let sizes: Vec<u32> = launch.arguments.iter().map(|argument| argument.size() as u32).collect();
        let mut arguments: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let mut error = [0u8; 2048];
        // SAFETY: names end in NUL, grid and block have three numbers each, arguments and sizes are as long as said.
        // The emulation compares the sizes with the kernel's, and checks every access of the kernel.
        let failed = unsafe {
            emu_launch(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                arguments.as_mut_ptr(),
                sizes.as_ptr(),
                sizes.len() as u32,
                self.seed,
                error.as_mut_ptr(),
                error.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        let error =
            String::from_utf8_lossy(error.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
        assert!(
            self.fault.is_none() || !error.contains("no such kernel"),
            "the faulty copy lacks a kernel: {error}"
        );
        Err(error)
    }
}

/// The names of all kernels that a GPU could be asked to run.
#[must_use]
pub fn kernels() -> Vec<String> {
    // SAFETY: null, or a text that ends in NUL and is never freed.
    let name = |number| unsafe {
        let name = emu_kernel_name(number);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    // Those of faulty copies have a colon in their names, those of the self-test a prefix.
    let real = |name: &String| !name.contains(':') && !name.starts_with("st_") && !name.starts_with("bad_");
    (0..).map_while(name).filter(real).collect()
}

/// How many passes over shared memory each matrix of `ldmatrix` took in this thread's last launch; 1 is the fewest.
#[must_use]
pub fn ldmatrix_passes() -> f64 {
    // SAFETY: reads two counters of this thread.
    unsafe { emu_ldmatrix_conflicts() }
}

/// Numbers in -1..1 that look random and are the same every time.
pub fn noise<T: Real>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::narrow((state >> 40) as f64 / f64::from(1 << 23) - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Compares with the formula.
///
/// # Errors
/// The first element that is off by more than `tolerance * (1 + |expected|)`.
pub fn compare<T: Real>(what: &str, found: &[T], expected: &[f64], tolerance: f64) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} elements, not {}", found.len(), expected.len()));
    }
    for (index, (found, &expected)) in found.iter().zip(expected).enumerate() {
        let found = found.wide();
        let error = (found - expected).abs();
        if error.is_nan() || error > tolerance * (1.0 + expected.abs()) {
            return Err(format!("{what} at {index}: {found}, not {expected}"));
        }
    }
    Ok(())
}
