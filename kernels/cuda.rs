//! Launches on a CUDA device: checked addresses of operands, and the kernels, compiled when the program was built.

use std::ffi::c_void;

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Shape, Storage,
    backend::BackendStorage as _,
    bail,
    cuda_backend::{CudaDType, CudaStorageSlice, WrapErr as _, cudarc},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _, DevicePtrMut as _, SyncOnDrop, result, sys};

use crate::launch::{Element, Launch, Rows};

/// A compiled kernel file.
pub(crate) struct Module {
    name: &'static str,
    ptx: &'static str,
}

macro_rules! module {
    ($constant:ident, $name:literal) => {
        pub(crate) const $constant: Module = Module {
            name: concat!("percept-", $name),
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        };
    };
}

module!(ACTIVATION, "activation");
module!(ALIGNMENT, "alignment");
module!(ATTENTION, "attention");
module!(KV_WRITE, "kv_write");
module!(LINEAR, "linear");
module!(LOG_MEL, "log_mel");
module!(NORM, "norm");
module!(RESIZE, "resize");
module!(SAMPLE, "sample");

/// An operand on the device. It is dropped behind the launch that uses it, and then other streams wait for that.
pub(crate) struct Operand<'a> {
    pub(crate) address: u64,
    _used: SyncOnDrop<'a>,
}

/// The element type of a storage.
pub(crate) fn element(storage: &CudaStorage, op: &str) -> Result<Element> {
    match storage.slice {
        CudaStorageSlice::F32(_) => Ok(Element::F32),
        CudaStorageSlice::BF16(_) => Ok(Element::BF16),
        CudaStorageSlice::F16(_) => Ok(Element::F16),
        _ => bail!("{op}: {:?} is not f32, f16 or bf16", storage.dtype()),
    }
}

/// Reads elements `start..end` of a slice.
fn part<'a, T>(
    slice: &'a CudaSlice<T>,
    (start, end): (usize, usize),
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    if start > end || end > slice.len() {
        bail!("{name} is shorter than its shape")
    }
    let (address, used) = slice.device_ptr(stream);
    Ok(Operand { address: address + (start * size_of::<T>()) as u64, _used: used })
}

fn reals<'a>(
    storage: &'a CudaStorage,
    element: Element,
    range: (usize, usize),
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    match (&storage.slice, element) {
        (CudaStorageSlice::F32(slice), Element::F32) => part(slice, range, name, stream),
        (CudaStorageSlice::BF16(slice), Element::BF16) => part(slice, range, name, stream),
        (CudaStorageSlice::F16(slice), Element::F16) => part(slice, range, name, stream),
        _ => bail!("{name} has another type than its operands: {:?}", storage.dtype()),
    }
}

fn contiguous_range(layout: &Layout, name: &str) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => bail!("{name} must be contiguous, has strides {:?}", layout.stride()),
    }
}

/// A contiguous operand of this element type, all of it inside its storage.
pub(crate) fn contiguous<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    element: Element,
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    reals(storage, element, contiguous_range(layout, name)?, name, stream)
}

/// As [`contiguous`], to be written in place.
pub(crate) fn contiguous_mut<'a>(
    storage: &'a mut CudaStorage,
    layout: &Layout,
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    fn part<'a, T>(
        slice: &'a mut CudaSlice<T>,
        (start, end): (usize, usize),
        name: &str,
        stream: &'a CudaStream,
    ) -> Result<Operand<'a>> {
        if start > end || end > slice.len() {
            bail!("{name} is shorter than its shape")
        }
        let (address, used) = slice.device_ptr_mut(stream);
        Ok(Operand { address: address + (start * size_of::<T>()) as u64, _used: used })
    }
    let range = contiguous_range(layout, name)?;
    match &mut storage.slice {
        CudaStorageSlice::F32(slice) => part(slice, range, name, stream),
        CudaStorageSlice::BF16(slice) => part(slice, range, name, stream),
        CudaStorageSlice::F16(slice) => part(slice, range, name, stream),
        _ => bail!("{name} is not f32, f16 or bf16"),
    }
}

/// A `[rows, heads, width]` operand whose rows may lie apart, the last of them inside its storage.
pub(crate) fn rows<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    element: Element,
    name: &str,
    stream: &'a CudaStream,
) -> Result<(Rows, Operand<'a>)> {
    let (rows, heads, width) = layout.shape().dims3()?;
    let &[stride, head_stride, 1] = layout.stride() else {
        bail!("{name} must have adjacent elements, has strides {:?}", layout.stride())
    };
    if heads > 1 && head_stride != width {
        bail!("{name} must have adjacent heads, has strides {:?}", layout.stride())
    }
    let start = layout.start_offset();
    let end = if rows == 0 { start } else { start + (rows - 1) * stride + heads * width };
    let operand = reals(storage, element, (start, end), name, stream)?;
    Ok((Rows { address: operand.address, stride }, operand))
}

/// A contiguous operand of so many u32, on this device.
pub(crate) fn contiguous_u32<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    count: usize,
    device: &CudaDevice,
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    if storage.device.id() != device.id() {
        bail!("{name} is on another GPU than its operands")
    }
    let (start, end) = contiguous_range(layout, name)?;
    if end - start != count {
        bail!("{name} has {} elements, not {count}", end - start)
    }
    part(u32::as_cuda_slice(storage)?, (start, end), name, stream)
}

/// A contiguous operand of bytes.
pub(crate) fn contiguous_u8<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    part(u8::as_cuda_slice(storage)?, contiguous_range(layout, name)?, name, stream)
}

/// Where a slice begins, of a stream that keeps all of its uses in order.
pub(crate) fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

/// As [`address`], to be written.
pub(crate) fn address_mut<T>(slice: &mut CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr_mut(stream).0
}

/// Zeros.
pub(crate) fn zeros(device: &CudaDevice, element: Element, count: usize) -> Result<CudaStorage> {
    Ok(match element {
        Element::F32 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(count)?, device.clone()),
        Element::BF16 => {
            CudaStorage::wrap_cuda_slice(device.alloc_zeros::<half::bf16>(count)?, device.clone())
        }
        Element::F16 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<half::f16>(count)?, device.clone()),
    })
}

/// What no kernel has written yet.
///
/// # Safety
/// The kernels that are launched next on the device's stream must write every element that is read later.
pub(crate) unsafe fn unwritten(device: &CudaDevice, element: Element, count: usize) -> Result<CudaStorage> {
    // SAFETY: what this function asks of its caller.
    unsafe {
        Ok(match element {
            Element::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(count)?, device.clone()),
            Element::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<half::bf16>(count)?, device.clone()),
            Element::F16 => CudaStorage::wrap_cuda_slice(device.alloc::<half::f16>(count)?, device.clone()),
        })
    }
}

/// Dynamic shared memory that a kernel may have without being asked about it.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// Puts a launch into the device's stream.
///
/// # Safety
/// The arguments must be those of the kernel, and its addresses, which belong to this device, must hold what the kernel
/// reads and writes.
pub(crate) unsafe fn run(device: &CudaDevice, module: &Module, launch: &Launch) -> Result<()> {
    let function = device.get_or_load_custom_func(&launch.kernel, module.name, module.ptx)?;
    if launch.shared > SHARED_WITHOUT_ASKING {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, launch.shared.cast_signed()).w()?;
    }
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let mut words: Vec<u64> = launch.arguments.iter().map(|argument| argument.word()).collect();
    let mut arguments: Vec<*mut c_void> =
        words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
    let [x, y, z] = launch.grid;
    let [block_x, block_y, block_z] = launch.block;
    // SAFETY: the kernel is of this device's context, which is current. Each argument points to a word that is as large
    // as any parameter and outlives the call, which copies it. The rest is what this function asks of its caller.
    unsafe {
        result::launch_kernel(
            function.cu_function(),
            (x, y, z),
            (block_x, block_y, block_z),
            launch.shared,
            stream.cu_stream(),
            &mut arguments,
        )
    }
    .w()
}

/// What an operation is given, and its name.
pub(crate) type Given<'a> = (&'static str, &'a CudaStorage, &'a Layout);

/// Operands of one type: what goes in, and what is read beside it; some of that may be absent.
pub(crate) struct Operands<'a, const N: usize> {
    pub(crate) x: (&'a CudaStorage, &'a Layout),
    pub(crate) beside: [Option<Given<'a>>; N],
}

impl<const N: usize> Operands<'_, N> {
    /// Runs a kernel over them to an output of `shape`, all contiguous. `launch` gets the addresses of output and x, and of
    /// what is beside, null where it is absent.
    ///
    /// # Safety
    /// The launch must be one of the module's, write the whole output, and read no more than the operands have.
    pub(crate) unsafe fn run(
        &self,
        op: &str,
        module: &Module,
        shape: Shape,
        launch: impl FnOnce(Element, [u64; 2], [u64; N]) -> Result<Option<Launch>>,
    ) -> Result<(CudaStorage, Shape)> {
        let device = &self.x.0.device;
        let stream = &device.cuda_stream();
        let element = element(self.x.0, op)?;
        let x = contiguous(self.x.0, self.x.1, element, "x", stream)?;
        let mut beside = [const { None }; N];
        let mut addresses = [0; N];
        for (index, given) in self.beside.iter().enumerate() {
            let Some((name, storage, layout)) = given else { continue };
            let operand = contiguous(storage, layout, element, name, stream)?;
            addresses[index] = operand.address;
            beside[index] = Some(operand);
        }
        // SAFETY: what this function asks of its caller.
        let mut out = unsafe { unwritten(device, element, shape.elem_count())? };
        let out_layout = Layout::contiguous(shape.clone());
        let to = contiguous_mut(&mut out, &out_layout, "out", stream)?;
        if let Some(launch) = launch(element, [to.address, x.address], addresses)? {
            // SAFETY: what this function asks of its caller; all operands lie inside their storage, as `contiguous` has
            // checked, and out was made for the launch.
            unsafe { run(device, module, &launch)? }
        }
        drop((to, x, beside));
        Ok((out, shape))
    }
}

/// As [`contiguous_u32`], of a tensor that is locked.
pub(crate) fn indices<'a>(
    storage: &'a Storage,
    layout: &Layout,
    count: usize,
    device: &CudaDevice,
    name: &str,
    stream: &'a CudaStream,
) -> Result<Operand<'a>> {
    let Storage::Cuda(storage) = storage else { bail!("{name} must be on the GPU, as its operands are") };
    contiguous_u32(storage, layout, count, device, name, stream)
}
