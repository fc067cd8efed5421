//! Builds the shim around intel-ipsec-mb and links the library.

fn main() {
    println!("cargo:rerun-if-changed=shim/mb.c");
    let built = cc::Build::new().file("shim/mb.c").std("c11").try_compile("vnic_shim");
    if let Err(error) = built {
        println!(
            "cargo::error=cannot compile against intel-ipsec-mb 1.3 or newer (apt install libipsec-mb-dev): {error}"
        );
    }
    println!("cargo:rustc-link-lib=dylib=IPSec_MB");
}
