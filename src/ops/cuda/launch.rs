//! Starting kernels on tensors.

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr as _, DeviceRepr, LaunchConfig, PushKernelArg as _, sys,
};
use candle_core::{CudaDevice, DType, Device, Shape, Storage, Tensor};

use super::super::adamw::Step;

#[allow(unreachable_pub, reason = "written by build.rs")]
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    RmsNorm,
    Rope,
    Glu,
    Kl,
    AdamW,
    Attention,
    Dropout,
}

impl Module {
    fn name_and_ptx(self) -> (&'static str, &'static str) {
        match self {
            Self::RmsNorm => ("bayesteach_rms_norm", ptx::RMS_NORM),
            Self::Rope => ("bayesteach_rope", ptx::ROPE),
            Self::Glu => ("bayesteach_glu", ptx::GLU),
            Self::Kl => ("bayesteach_kl", ptx::KL),
            Self::AdamW => ("bayesteach_adamw", ptx::ADAMW),
            Self::Attention => ("bayesteach_attention", ptx::ATTENTION),
            Self::Dropout => ("bayesteach_dropout", ptx::DROPOUT),
        }
    }
}

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub blocks: (usize, usize),
    pub threads: u32,
    /// Bytes.
    pub shared: usize,
}

/// `ROW_THREADS` of common.cuh.
const ROW_THREADS: u32 = 256;

impl Grid {
    /// One block a row.
    pub(super) fn rows(rows: usize) -> Self {
        Self { blocks: (rows, 1), threads: ROW_THREADS, shared: 0 }
    }

    /// One thread for every `each` elements of at most `longest` in a sequence.
    pub(super) fn sequences(sequences: usize, longest: usize, each: usize) -> Self {
        let blocks = longest.div_ceil(each * ROW_THREADS as usize);
        Self { blocks: (blocks, sequences), threads: ROW_THREADS, shared: 0 }
    }

    /// One thread an element.
    pub(super) fn elements(n: usize) -> Result<Self> {
        let blocks = n.div_ceil(ROW_THREADS as usize);
        ensure!(blocks <= i32::MAX as usize, "a tensor of {n} elements is too large for one kernel");
        Ok(Self { blocks: (blocks, 1), threads: ROW_THREADS, shared: 0 })
    }
}

/// `Spec` of attention.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionSpec {
    pub heads: i32,
    pub kv_heads: i32,
    pub scale: f32,
    pub softcap: f32,
    pub window: i32,
}

/// `AdamW` of adamw.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AdamWStep([f32; 9]);

impl From<&Step> for AdamWStep {
    fn from(step: &Step) -> Self {
        let ([beta1, beta2], [correction1, correction2]) = (step.betas, step.corrections());
        let numbers = [
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 / correction2.sqrt(),
            step.eps,
            step.lr / correction1,
            1.0 - step.lr * step.weight_decay,
            step.factor,
        ];
        Self(numbers.map(|x| x as f32))
    }
}

#[expect(unsafe_code, reason = "plain numbers in the order of the kernel's own struct")]
unsafe impl DeviceRepr for AttentionSpec {}
#[expect(unsafe_code, reason = "plain numbers in the order of the kernel's own struct")]
unsafe impl DeviceRepr for AdamWStep {}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg<'a> {
    /// Its elements, which lie one after the other.
    Tensor(&'a Tensor),
    /// No elements.
    Null,
    Int(i32),
    Count(usize),
    Float(f32),
    Attention(AttentionSpec),
    AdamW(AdamWStep),
}

impl Arg<'_> {
    pub(super) fn int(value: usize) -> Result<Self> {
        Ok(Arg::Int(i32::try_from(value).context("a tensor is too large for a kernel")?))
    }
}

/// A tensor that a kernel will fill.
pub(super) fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    #[expect(unsafe_code, reason = "a kernel writes every element before anything reads one")]
    let tensor = unsafe { Tensor::empty(shape, dtype, device) }?;
    Ok(tensor)
}

/// Starts a kernel on the device of its first argument. All work of a device is on one stream, so that a tensor may be
/// dropped as soon as the kernel that reads it was started.
pub(super) fn launch(module: Module, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
    if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
        return Ok(());
    }
    let Some(Arg::Tensor(first)) = args.first() else { bail!("{kernel} without a tensor") };
    let Device::Cuda(device) = first.device() else { bail!("{kernel} on another device than CUDA") };
    let (name, ptx) = module.name_and_ptx();
    let function = device.get_or_load_custom_func(kernel, name, ptx).with_context(|| {
        format!("the kernel {kernel} does not load; was this binary built for this GPU's compute capability?")
    })?;
    if grid.shared > 48 << 10 {
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function
            .set_attribute(most, grid.shared as i32)
            .with_context(|| format!("{kernel} needs {} KiB of shared memory a block", grid.shared >> 10))?;
    }
    let pointers = args
        .iter()
        .map(|arg| match arg {
            Arg::Tensor(tensor) => pointer(tensor, device),
            _ => Ok(0),
        })
        .collect::<Result<Vec<u64>>>()?;
    let mut builder = function.builder();
    for (arg, pointer) in args.iter().zip(&pointers) {
        match arg {
            Arg::Tensor(_) | Arg::Null => builder.arg(pointer),
            Arg::Int(value) => builder.arg(value),
            Arg::Count(value) => builder.arg(value),
            Arg::Float(value) => builder.arg(value),
            Arg::Attention(spec) => builder.arg(spec),
            Arg::AdamW(step) => builder.arg(step),
        };
    }
    let config = LaunchConfig {
        grid_dim: (u32::try_from(grid.blocks.0)?, u32::try_from(grid.blocks.1)?, 1),
        block_dim: (grid.threads, 1, 1),
        shared_mem_bytes: u32::try_from(grid.shared)?,
    };
    #[expect(unsafe_code, reason = "the arguments are those of the kernel, and its tensors have its shapes")]
    unsafe { builder.launch(config) }.with_context(|| format!("{kernel} does not start"))?;
    Ok(())
}

/// Where the elements of a contiguous tensor are.
fn pointer(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    ensure!(layout.is_contiguous(), "a kernel's tensor {:?} with gaps", tensor.shape());
    let Storage::Cuda(storage) = &*storage else { bail!("a kernel's tensor is not on CUDA") };
    let stream = device.cuda_stream();
    let base = match tensor.dtype() {
        DType::F32 => address(storage.as_cuda_slice::<f32>()?, &stream),
        DType::BF16 => address(storage.as_cuda_slice::<half::bf16>()?, &stream),
        DType::U32 => address(storage.as_cuda_slice::<u32>()?, &stream),
        other => bail!("no kernel takes {other:?}"),
    };
    Ok(base + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}
