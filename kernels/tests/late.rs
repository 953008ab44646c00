//! CUDA's libraries are looked for when a GPU is opened: what is missing is said, and what is there is used. Libraries
//! of a few lines stand for NVIDIA's, each in a process of its own, since they stay loaded.
#![cfg(feature = "cuda")]
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use percept_kernels::open_cuda;

const MAJOR: &str = env!("PERCEPT_CUDA_MAJOR");

/// What the others run, with libraries that only they have.
#[test]
fn opened() {
    if env::var_os(OPENS).is_some() {
        println!("opened: {}", open_cuda(0).unwrap_err());
    }
}

const OPENS: &str = "PERCEPT_TEST_OPENS";

struct Libraries(PathBuf);

impl Libraries {
    fn new(test: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// A library of these functions, in C.
    fn with(self, file: &str, functions: &str) -> Self {
        let source = self.0.join("source.c");
        fs::write(&source, functions).unwrap();
        let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
        let compiled = Command::new(compiler)
            .args(["-shared", "-fPIC", "-o"])
            .args([&self.0.join(file), &source])
            .status();
        assert!(compiled.unwrap().success());
        self
    }

    fn with_toolkit(self) -> Self {
        let cublas = format!("libcublas.so.{MAJOR}");
        let cublas_lt = format!("libcublasLt.so.{MAJOR}");
        [&cublas, &cublas_lt, "libcurand.so.10"].into_iter().fold(self, |all, file| all.with(file, ""))
    }

    /// What a program says that opens a GPU with these.
    fn open(&self) -> String {
        let mut program = Command::new(env::current_exe().unwrap());
        program.args(["--exact", "opened", "--nocapture"]).env(OPENS, "1");
        program.env("LD_LIBRARY_PATH", &self.0).env_remove("CUDA_HOME").env_remove("CUDA_PATH");
        let output = program.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

#[test]
fn functions_of_the_libraries_are_called_with_all_their_arguments() {
    let driver = r#"
        int cuInit(unsigned flags) { return flags == 0 ? 36 : 1; }
        int cuGetErrorString(int status, const char **text) {
            *text = status == 36 ? "said by the driver of a test" : "another status";
            return 0;
        }"#;
    let said = Libraries::new("late-called").with("libcuda.so.1", driver).with_toolkit().open();
    assert!(said.contains("said by the driver of a test"), "{said}");
}

#[test]
fn functions_that_a_driver_lacks_answer_with_a_status() {
    let driver = "int cuInit(unsigned flags) { return 0; }";
    let said = Libraries::new("late-lacking").with("libcuda.so.1", driver).with_toolkit().open();
    assert!(said.contains("CUDA_ERROR_NOT_FOUND"), "{said}");
}

#[test]
fn a_library_that_is_missing_is_named() {
    let installed = format!("/usr/local/cuda/lib64/libcublas.so.{MAJOR}");
    if Path::new(&installed).exists() {
        println!("skipped: this machine has {installed}");
        return;
    }
    let libraries =
        Libraries::new("late-missing").with("libcuda.so.1", "int cuInit(unsigned flags) { return 0; }");
    // In front of one that the machine may have elsewhere.
    fs::write(libraries.0.join(format!("libcublas.so.{MAJOR}")), "no library").unwrap();
    let said = libraries.open();
    assert!(said.contains(&format!("libcublas.so.{MAJOR} of CUDA {MAJOR} was not found")), "{said}");
    assert!(said.contains("folder lib beside percept"), "{said}");
}
