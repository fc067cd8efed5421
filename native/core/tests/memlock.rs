//! Where no memory may be locked, nothing is made of keys.
//!
//! A test of its own process: limits and user are the process's.

use vnic_core::cipher::{Keys, KeysError, Opener};
use vnic_core::keys::KeyMemory;
use vnic_core::mb::{Manager, ManagerError};

#[test]
fn keys_without_locked_memory_are_an_error_and_not_kept_elsewhere() {
    let mut manager = Manager::new().expect("a manager");
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls of a process with nothing else in it; the limit lives as long as the call.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        // The superuser may lock what it likes.
        if libc::geteuid() == 0 {
            assert_eq!(libc::seteuid(65_534), 0);
        }
    }
    let keys =
        Keys { encryption: "aes-gcm-128", encryption_key: &[1; 20], integrity: "", integrity_key: &[], icv_length: 16 };
    assert_eq!(Opener::new(&mut manager, &keys).err(), Some(KeysError::Memory));
    assert!(KeyMemory::new(64).is_none());
    assert_eq!(Manager::new().err(), Some(ManagerError::Memory));
}
