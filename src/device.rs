//! Which device and dtype a command computes in. With `ops/`, the only place that knows CUDA or Metal.

#[cfg(feature = "cuda")]
mod pool;
#[cfg(feature = "cuda")]
mod workspace;

use anyhow::{Context as _, Result};
use candle_core::{DType, Device};

use crate::error::usage;

/// Opens `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
///
/// `auto` takes CUDA or Metal where this binary was built with it and a device answers, else the CPU.
///
/// # Errors
/// For an unknown name, a device that this binary was not built for, or one that does not answer.
pub fn open(name: &str) -> Result<Device> {
    match name {
        "auto" => Ok(automatic()),
        "cpu" => Ok(Device::Cpu),
        "metal" => {
            if !candle_core::utils::metal_is_available() {
                return Err(usage("this binary was built without Metal: build it with --features metal"));
            }
            Device::new_metal(0).context("Metal does not answer")
        }
        _ => {
            let index = match name.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
                None => None,
            };
            let Some(index) = index else {
                return Err(usage(format!("unknown device {name:?}: use auto, cpu, cuda:0 or metal")));
            };
            if !candle_core::utils::cuda_is_available() {
                return Err(usage("this binary was built without CUDA: build it with --features cuda"));
            }
            open_cuda(index).with_context(|| format!("{name} does not answer"))
        }
    }
}

fn automatic() -> Device {
    if candle_core::utils::cuda_is_available()
        && let Ok(device) = open_cuda(0)
    {
        return device;
    }
    if candle_core::utils::metal_is_available()
        && let Ok(device) = Device::new_metal(0)
    {
        return device;
    }
    Device::Cpu
}

/// On one stream for all threads, which runs everything in the order in which it was asked for.
fn open_cuda(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        // With one stream there is nothing to wait for.
        #[expect(unsafe_code, reason = "no other stream is ever made")]
        unsafe {
            cuda.disable_event_tracking();
        }
        pool::keep_freed(cuda)?;
        workspace::fix(cuda)?;
    }
    Ok(device)
}

/// The name by which [`open`] finds this device again.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { .. } => "metal".into(),
    }
}

/// The dtype of weights and activations: `auto` is f32 on the CPU and bf16 on GPUs.
///
/// # Errors
/// For an unknown name.
pub fn dtype(name: &str, device: &Device) -> Result<DType> {
    match (name, device) {
        ("f32", _) | ("auto", Device::Cpu) => Ok(DType::F32),
        ("bf16" | "auto", _) => Ok(DType::BF16),
        _ => Err(usage(format!("unknown dtype {name:?}: use auto, f32 or bf16"))),
    }
}

/// The name by which [`dtype`] finds this dtype again.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F64 => "f64",
        _ => "f32",
    }
}

/// The memory that this process holds now (CPU), or that is in use on the device (CUDA), in bytes, where known.
pub fn memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => {
            let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
            let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
            Some(pages * page_size()?)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => pool::in_use(cuda).ok(),
        _ => None,
    }
}

/// The memory that is there for this process (CPU) or on the device (CUDA), in bytes, where known.
pub fn available_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
            let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some(kilobytes * 1024)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let (free, _) = cuda.cuda_stream().context().mem_get_info().ok()?;
            Some(free as u64 + pool::kept(cuda).ok()?)
        }
        _ => None,
    }
}

fn page_size() -> Option<u64> {
    #[cfg(unix)]
    {
        let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        u64::try_from(size).ok()
    }
    #[cfg(not(unix))]
    None
}

/// The most that [`memory`] has been so far, in bytes, where known.
pub fn peak_memory_of(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => peak_memory(),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => pool::peak(cuda).ok(),
        _ => None,
    }
}

/// User and system time of all threads of this process so far, in seconds, where the system tells.
pub fn cpu_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        use nix::sys::time::TimeValLike as _;
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok()?;
        Some((usage.user_time() + usage.system_time()).num_microseconds() as f64 * 1e-6)
    }
    #[cfg(not(unix))]
    None
}

/// The most memory that this process has held so far, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    #[cfg(unix)]
    {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok()?;
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(usage.max_rss()).ok().map(|rss| rss * unit)
    }
    #[cfg(not(unix))]
    None
}
