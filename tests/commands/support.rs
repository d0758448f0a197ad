//! How commands are run here, what they are given, and the servers that they speak to.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};
use slipway::image::Digest;

pub fn slipway(arguments: &[&str], folder: &Path) -> Output {
    command(arguments, folder).stdin(Stdio::null()).output().unwrap()
}

pub fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipway"));
    command.args(arguments).current_dir(folder);
    command
}

/// Runs the command with bytes on its standard input.
pub fn slipway_fed(arguments: &[&str], folder: &Path, input: &[u8]) -> Output {
    let mut child = command(arguments, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs another program that has to succeed; answers what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The names in a folder, in their order.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What `sha256sum` says of a file, as a digest.
pub fn sha256sum(path: &Path) -> String {
    let line = run(Command::new("sha256sum").arg(path));
    format!("sha256:{}", line.split_whitespace().next().unwrap())
}

/// Says that something was not tested. Straight to the stream, which the test's harness does not hold back.
pub fn skip(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {what}: {why}");
}

/// Every program of a name: of `SLIPWAY_TOOLS`, of what `hack/cluster/build-tools` built, of `PATH`.
pub fn tools(name: &str) -> Vec<PathBuf> {
    let given = std::env::var_os("SLIPWAY_TOOLS").into_iter().map(PathBuf::from);
    let folder = |variable: &str, below: &str| Some(PathBuf::from(std::env::var_os(variable)?).join(below));
    let cache = folder("SLIPWAY_CACHE", "tools")
        .or_else(|| folder("XDG_CACHE_HOME", "slipway/tools"))
        .or_else(|| folder("HOME", ".cache/slipway/tools"));
    let built = cache.into_iter().flat_map(|cache| {
        let folders = fs::read_dir(cache).into_iter().flatten().flatten();
        // Links to what is in the other folders.
        folders
            .map(|entry| entry.path())
            .filter(|path| !path.to_string_lossy().contains("/set-"))
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let all = given
        .chain(built)
        .chain(installed)
        .map(|folder| folder.join(name));
    all.filter(|path| path.is_file()).collect()
}

/// The first program of a name; says so where there is none.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = tools(name).into_iter().next();
    if found.is_none() {
        skip(name, "it is not installed");
    }
    found
}

/// A server that ends with the test.
pub struct Server {
    process: Child,
    /// What its log said when it was ready.
    pub ready: String,
}

impl Server {
    /// Starts a server and waits for the line of its log that has this text; without one it is skipped.
    pub fn start(name: &str, command: &mut Command, ready: &str) -> Option<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut last = String::new();
        let line = log.by_ref().map_while(Result::ok).find(|line| {
            last.clone_from(line);
            line.contains(ready)
        });
        // Nobody reads a log that fills up; it would stop the server.
        std::thread::spawn(move || log.for_each(drop));
        let Some(ready) = line else {
            let _ = process.wait();
            skip(name, &format!("it does not start here: {last}"));
            return None;
        };
        Some(Self { process, ready })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politely, because it has children of its own.
        signal(&self.process, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

pub fn signal(process: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(process.id()).ok();
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The reference implementation of a registry, on a port and in a folder of its own.
pub struct Registry {
    pub address: String,
    _server: Server,
    _folder: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Option<Self> {
        Self::start_with("storage: {}")
    }

    /// With more of a configuration, whose storage gets a folder.
    pub fn start_with(more: &str) -> Option<Self> {
        let program = tool("registry")?;
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let filesystem = format!(
            "storage: {{filesystem: {{rootdirectory: {}}}, ",
            storage.display()
        );
        let lines = format!(
            "version: 0.1\n{}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            more.replace("storage: {", &filesystem)
        );
        fs::write(&configuration, lines).unwrap();
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg(&configuration)
            .env("OTEL_TRACES_EXPORTER", "none");
        let server = Server::start("registry", &mut command, "listening on ")?;
        let (_, rest) = server.ready.split_once("listening on ").unwrap();
        Some(Self {
            address: rest.split([',', ' ', '"']).next().unwrap().to_owned(),
            _server: server,
            _folder: folder,
        })
    }

    /// A repository of it, and the flag that lets it be spoken to.
    pub fn repository(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// What it answers to a GET.
    pub fn get(&self, path: &str, accept: &str) -> Vec<u8> {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--header"])
            .arg(format!("Accept: {accept}"))
            .arg(format!("http://{}{path}", self.address))
            .output()
            .unwrap();
        assert!(output.status.success(), "{path}: {}", text(&output.stderr));
        output.stdout
    }
}

/// Text that compresses about as programs do, different for each seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let words: Vec<String> = (0..2000).map(|_| format!("{:x} ", random.u32(..))).collect();
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        text.extend_from_slice(words[random.usize(..words.len())].as_bytes());
    }
    text.truncate(length);
    text
}

/// A layer with one file.
pub fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    tar(&[(name, content)])
}

pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// One image of a docker archive.
pub struct Image<'a> {
    pub platform: (&'a str, &'a str),
    pub layers: &'a [Vec<u8>],
}

impl<'a> Image<'a> {
    pub fn amd64(layers: &'a [Vec<u8>]) -> Self {
        Self {
            platform: ("linux", "amd64"),
            layers,
        }
    }
}

/// A docker archive; `stored` says which layers are there, by image and position.
pub fn docker_archive(images: &[Image<'_>], stored: impl Fn(usize, usize) -> bool) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut sections = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| Digest::of(layer)).collect();
        let (os, architecture) = image.platform;
        let config = json!({
            "os": os, "architecture": architecture, "created_by": number,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let names: Vec<String> = (0..image.layers.len())
            .map(|n| format!("layer-{number}-{n}/layer.tar"))
            .collect();
        files.push((format!("{number}.json"), config.to_string().into_bytes()));
        for (n, layer) in image
            .layers
            .iter()
            .enumerate()
            .filter(|(n, _)| stored(number, *n))
        {
            files.push((names[n].clone(), layer.clone()));
        }
        sections.push(json!({
            "Config": format!("{number}.json"), "RepoTags": [format!("app:{number}")], "Layers": names,
        }));
    }
    files.push((
        "manifest.json".into(),
        Value::from(sections).to_string().into_bytes(),
    ));
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (&name[..], &content[..]))
        .collect();
    tar(&files)
}
