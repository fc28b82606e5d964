//! Compiles the CUDA kernels to PTX where the `cuda` feature is on.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    compile_kernels();
}

/// For the compute capability of `CUDA_COMPUTE_CAP`, or of the GPU of this machine, as candle's own kernels.
#[cfg(feature = "cuda")]
fn compile_kernels() {
    println!("cargo::rerun-if-changed=src/ops/cuda");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = cudaforge::KernelBuilder::new()
        .source_dir("src/ops/cuda")
        .watch(["src/ops/cuda/common.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .expect("nvcc compiles src/ops/cuda; scripts/build-cuda.sh builds without a CUDA installation");
    kernels.write(out.join("kernels.rs")).expect("OUT_DIR can be written");
}
