//! Command lines of the examples: what is asked for is what is done, or is refused.
#![cfg(target_arch = "x86_64")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Parser;
use machines::link::Address;

#[path = "../examples/live_migrate/options.rs"]
#[allow(dead_code)] // the example uses all of it
mod live_migrate;
#[path = "../mini-pc/examples/mini_pc/options.rs"]
#[allow(dead_code)]
mod mini_pc;

fn live_migrate(arguments: &[&str]) -> Result<live_migrate::Options, String> {
    let arguments = ["live_migrate"].iter().chain(arguments);
    live_migrate::Options::try_parse_from(arguments).map_err(|error| error.to_string())
}

fn mini_pc(ram: &str) -> Result<mini_pc::Options, String> {
    let arguments = ["mini_pc", "--bios", "bios.bin", "--ram", ram];
    mini_pc::Options::try_parse_from(arguments).map_err(|error| error.to_string())
}

#[test]
fn rates_are_not_rounded() {
    for (text, bytes) in [("100", 100), ("1", 1), ("5000", 5000), ("4097", 4097), ("1K", 1024)] {
        let options = live_migrate(&["--bandwidth", text, "--dirty-rate", text]).unwrap();
        assert_eq!((options.bandwidth, options.dirty_rate), (Some(bytes), bytes));
    }
    for text in ["0", "-1", "1.5M", "fast", ""] {
        let refused = live_migrate(&[&format!("--bandwidth={text}")]).unwrap_err();
        assert!(refused.contains("--bandwidth"), "{refused}");
    }
}

#[test]
fn memory_that_is_no_whole_number_of_pages_is_refused() {
    let options = live_migrate(&["--ram", "128M", "--dirty", "8K"]).unwrap();
    assert_eq!((options.ram, options.dirty), (128 << 20, 8192));
    for option in ["--ram", "--dirty"] {
        for text in ["100", "5000", "4097"] {
            let refused = live_migrate(&[option, text]).unwrap_err();
            let says = format!("{text} bytes are asked for, which is no multiple of 4096");
            assert!(refused.contains(&says) && refused.contains(option), "{refused}");
        }
    }
    for (text, says) in [
        ("100", "1048576 is the least"),
        ("2000K", "1048576 and 2097152 are the nearest"),
        ("1M", "2097152 are needed at least"),
        ("lots", "no number of bytes"),
    ] {
        let refused = mini_pc(text).map(drop).unwrap_err();
        assert!(refused.contains(says), "{refused}");
    }
    assert!(mini_pc("2M").is_ok() && mini_pc("1G").is_ok());
}

/// The destination's address comes back as a line.
#[test]
fn a_destinations_address_is_one_line() {
    let options = live_migrate(&[]).unwrap();
    for folder in [&b"/tmp/a\nb"[..], b"/tmp/\xff", b"/tmp/\r"] {
        let refused = options.own_address(Path::new(OsStr::from_bytes(folder)));
        assert!(refused.is_err(), "{refused:?}");
    }
    let address = options.own_address(Path::new("/tmp/a b")).unwrap();
    assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
    let refused = live_migrate(&["--listen", "unix:/tmp/a\nb"]).unwrap_err();
    assert!(refused.contains("control character"), "{refused}");
}
