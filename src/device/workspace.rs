//! The memory in which cuBLAS keeps partial sums.

use anyhow::Result;
use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::cublas::sys;

/// What NVIDIA recommends for Hopper and later.
const BYTES: usize = 32 << 20;

/// Gives cuBLAS one workspace for good. Left to itself it may choose another way to sum by what it has at hand, and runs would
/// not repeat bit for bit.
pub(super) fn fix(device: &CudaDevice) -> Result<()> {
    #[expect(unsafe_code, reason = "nobody reads these bytes before cuBLAS writes them")]
    let memory = unsafe { device.cuda_stream().alloc::<u8>(BYTES) }?;
    // The handle lives as long as the device, which the program keeps to its end.
    let address = memory.leak();
    #[expect(unsafe_code, reason = "the memory is never freed")]
    unsafe { sys::cublasSetWorkspace_v2(*device.cublas_handle().handle(), address as *mut _, BYTES) }
        .result()?;
    Ok(())
}
