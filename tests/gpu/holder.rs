//! Takes GPU memory and holds it, by the driver alone: the smallest program that the guard has to keep alive.
//!
//! Without a framework it is ready within a second, so that nothing hides a race for the last free MiB. It is one file
//! for `rustc -O`, and loads `libcuda.so.1` at run time. All settings are environment variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `TAKE_MIB` | memory to allocate |
//! | `STEP_MIB`, `PAUSE_MS` | size of one allocation, and the pause after each; all at once by default |
//! | `GROW_MIB`, `GROW_AFTER_S` | allocated once more, that long after it was ready |
//! | `HOLD_S` | ends with exit code 0 that long after it was ready; by default it waits for SIGTERM |
//! | `IGNORE_TERM` | `1`: SIGTERM does nothing |
//! | `HELD` | directory for the file named by `POD_NAME`, which says `ready SECONDS MIB` or `died SECONDS WHY` |
//! | `PRETEND` | `1`: allocates nothing, to try the scripts without a GPU |
//!
//! Exit code 1: the driver refused something, such as memory (CUDA error 2).

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn signal(number: c_int, handler: usize) -> usize;
    fn _exit(code: c_int) -> !;
}

const NOW: c_int = 2;
const SIGTERM: c_int = 15;

extern "C" fn end(_: c_int) {
    // SAFETY: `_exit` may be called in a signal handler.
    unsafe { _exit(143) }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn tell(what: &str, rest: &str) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    println!("{what} {seconds:.3} {rest}");
    if let (Ok(folder), Ok(pod)) = (std::env::var("HELD"), std::env::var("POD_NAME")) {
        let file = format!("{folder}/{pod}");
        let written = std::fs::write(format!("{file}.new"), format!("{what} {seconds:.3} {rest}\n"))
            .and_then(|()| std::fs::rename(format!("{file}.new"), file));
        if let Err(why) = written {
            println!("cannot tell: {why}");
        }
    }
}

/// The driver's library, or nothing that pretends.
struct Driver(*mut c_void);

impl Driver {
    fn load() -> Result<Driver, String> {
        if std::env::var("PRETEND").is_ok_and(|on| on == "1") {
            return Ok(Driver(std::ptr::null_mut()));
        }
        // SAFETY: the name ends in NUL.
        let library = unsafe { dlopen(c"libcuda.so.1".as_ptr(), NOW) };
        if library.is_null() {
            return Err("libcuda.so.1 cannot be loaded".to_owned());
        }
        Ok(Driver(library))
    }

    /// Calls a function of up to four arguments that returns a `CUresult`.
    fn call(&self, name: &str, arguments: [usize; 4]) -> Result<(), String> {
        if self.0.is_null() {
            return Ok(());
        }
        let symbol = CString::new(name).map_err(|why| why.to_string())?;
        // SAFETY: the name ends in NUL, and the library is open.
        let function = unsafe { dlsym(self.0, symbol.as_ptr()) };
        if function.is_null() {
            return Err(format!("the driver has no {name}"));
        }
        // SAFETY: all functions used here take integers and pointers of at most eight bytes, which x86-64 and AArch64
        // pass in the same registers; what is passed in excess is ignored.
        let code = unsafe {
            let function: extern "C" fn(usize, usize, usize, usize) -> c_uint = std::mem::transmute(function);
            function(arguments[0], arguments[1], arguments[2], arguments[3])
        };
        if code == 0 { Ok(()) } else { Err(format!("{name}: CUDA error {code}")) }
    }

    fn context(&self) -> Result<(), String> {
        let mut context: usize = 0;
        self.call("cuInit", [0; 4])?;
        self.call("cuDevicePrimaryCtxRetain", [&raw mut context as usize, 0, 0, 0])?;
        self.call("cuCtxSetCurrent", [context, 0, 0, 0])
    }

    /// Allocates and writes, because the driver might otherwise back nothing.
    fn take(&self, mib: u64) -> Result<(), String> {
        let mut pointer: usize = 0;
        let bytes = usize::try_from(mib << 20).map_err(|why| why.to_string())?;
        self.call("cuMemAlloc_v2", [&raw mut pointer as usize, bytes, 0, 0])?;
        self.call("cuMemsetD8_v2", [pointer, 1, bytes, 0])?;
        self.call("cuCtxSynchronize", [0; 4])
    }
}

fn run(held: &mut u64) -> Result<(), String> {
    let take = number("TAKE_MIB").ok_or("TAKE_MIB is not set")?;
    let step = number("STEP_MIB").unwrap_or(take).max(1);
    let pause = Duration::from_millis(number("PAUSE_MS").unwrap_or(0));
    let driver = Driver::load()?;
    driver.context()?;
    while *held < take {
        let size = step.min(take - *held);
        driver.take(size)?;
        *held += size;
        std::thread::sleep(pause);
    }
    tell("ready", &held.to_string());
    if let Some(grow) = number("GROW_MIB") {
        std::thread::sleep(Duration::from_secs(number("GROW_AFTER_S").unwrap_or(0)));
        driver.take(grow)?;
        *held += grow;
        tell("ready", &held.to_string());
    }
    std::thread::sleep(number("HOLD_S").map_or(Duration::MAX, Duration::from_secs));
    Ok(())
}

fn main() {
    if std::env::var("IGNORE_TERM").is_ok_and(|on| on == "1") {
        // SAFETY: 1 is SIG_IGN.
        unsafe { signal(SIGTERM, 1) };
    } else {
        // SAFETY: the handler calls `_exit` alone.
        unsafe { signal(SIGTERM, end as *const () as usize) };
    }
    let mut held = 0;
    if let Err(why) = run(&mut held) {
        tell("died", &format!("after {held} MiB: {why}"));
        std::process::exit(1);
    }
}
