//! The memory pool of a CUDA device.

use std::ffi::c_void;

use anyhow::Result;
use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{result, sys};

/// The pool that all tensors of the device come from.
fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    #[expect(unsafe_code, reason = "the device is there: its context is")]
    let pool = unsafe { result::device::get_default_mem_pool(device.cuda_stream().context().cu_device()) }?;
    Ok(pool)
}

/// Lets the device's pool keep what is freed. By default it gives everything back at every synchronisation, and asking
/// again takes longer than most kernels.
pub(super) fn keep_freed(device: &CudaDevice) -> Result<()> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    #[expect(unsafe_code, reason = "the attribute is a u64")]
    unsafe { sys::cuMemPoolSetAttribute(pool(device)?, attribute, (&raw mut threshold).cast::<c_void>()) }
        .result()?;
    Ok(())
}

fn pool_attribute(device: &CudaDevice, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut value = 0u64;
    #[expect(unsafe_code, reason = "the attribute is a u64")]
    unsafe { sys::cuMemPoolGetAttribute(pool(device)?, attribute, (&raw mut value).cast::<c_void>()) }
        .result()?;
    Ok(value)
}

/// Bytes that tensors hold now.
pub(super) fn in_use(device: &CudaDevice) -> Result<u64> {
    pool_attribute(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// Bytes that were freed and are kept for the tensors to come.
pub(super) fn kept(device: &CudaDevice) -> Result<u64> {
    let reserved = pool_attribute(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    Ok(reserved.saturating_sub(in_use(device)?))
}

/// The most that [`in_use`] has been.
pub(super) fn peak(device: &CudaDevice) -> Result<u64> {
    pool_attribute(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
}
