//! `bayesteach doctor`: what this machine has, and what to do about what is missing.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;

use super::{Context, Done, print};
use crate::{device, ops};

/// One thing looked at.
struct Finding {
    what: &'static str,
    found: String,
    /// What to do, where something is missing.
    advice: Option<String>,
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), advice: None }
}

fn missing(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), advice: Some(advice.into()) }
}

pub(super) fn command(context: &Context) -> Result<Done> {
    let mut findings = vec![
        good("version", format!("bayesteach {}", env!("CARGO_PKG_VERSION"))),
        good("processor", processor()),
    ];
    if let Some(bytes) = device::available_memory(&Device::Cpu) {
        findings.push(good("memory", format!("{:.1} GB available", bytes as f64 / 1e9)));
    }
    findings.extend(accelerators());
    findings.extend(hub(context));
    findings.push(folder("run directories", Path::new("runs"), "choose another run.dir in the config"));
    let mut wrong = 0;
    for Finding { what, found, advice } in findings {
        print(&format!("{what:<16} {found}"));
        if let Some(advice) = advice {
            wrong += 1;
            print(&format!("{:<16} → {advice}", ""));
        }
    }
    print(match wrong {
        0 => "\neverything is there",
        _ => "\nwhat is marked with → is only needed by those who want it; everything else works without",
    });
    Ok(Done::Finished)
}

fn processor() -> String {
    format!("{} threads, {}", rayon::current_num_threads(), ops::kernels(&Device::Cpu))
}

fn accelerators() -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, built, name, build) in [
        ("CUDA", candle_core::utils::cuda_is_available(), "cuda:0", "cuda"),
        ("Metal", candle_core::utils::metal_is_available(), "metal", "metal"),
    ] {
        if !built {
            findings.push(missing(
                what,
                "not built in",
                format!("for such a device: cargo build --release --features {build}"),
            ));
            continue;
        }
        findings.push(match device::open(name) {
            Ok(_) => good(what, format!("built in; {name} answers")),
            // Without the backtrace that may follow.
            Err(e) => missing(
                what,
                format!("built in, but {name} does not answer"),
                format!("{e:#}").lines().next().unwrap_or_default().to_string(),
            ),
        });
    }
    findings
}

fn hub(context: &Context) -> Vec<Finding> {
    let hub = &context.hub;
    let mut findings =
        vec![folder("hub cache", &hub.cache, "set HF_HUB_CACHE to a folder that can be written")];
    findings.push(match &hub.token {
        Some(_) => good("hub login", "a token is there"),
        None => missing(
            "hub login",
            "no token",
            "for gated models: set HF_TOKEN, or log in with Hugging Face's own `hf auth login`",
        ),
    });
    if hub.offline {
        findings.push(missing("hub", "offline (HF_HUB_OFFLINE)", "unset it to download models"));
    }
    if let Some(endpoint) = &hub.endpoint {
        findings.push(good("hub address", endpoint.clone()));
    }
    findings
}

/// Whether files can be written in a folder, or in the nearest one above that exists, and how much room there is.
fn folder(what: &'static str, path: &Path, advice: &str) -> Finding {
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let Some(existing) = full.ancestors().find(|dir| dir.is_dir()) else {
        return missing(what, format!("{}: there is no such place", full.display()), advice);
    };
    match tempfile::tempfile_in(existing) {
        Ok(_) => {
            let free = fs4::available_space(existing).map(|b| format!(", {:.1} GB free", b as f64 / 1e9));
            good(what, format!("{}{}", full.display(), free.unwrap_or_default()))
        }
        Err(e) => missing(what, format!("{}: cannot write: {e}", existing.display()), advice),
    }
}
