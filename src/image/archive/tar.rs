//! The index of a tar archive: which name is where. Nothing is extracted, bodies are not even read.
//!
//! Five widely used readers disagree about every second odd archive, so whatever is odd is refused: one
//! dialect of long names an archive, bodies only behind files, no size said twice with two values, an end
//! marker with nothing behind it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use super::{
    ArchiveError, Limits,
    content::Content,
    header::{BLOCK, Header, Kind},
    name,
    pax::Pax,
};
use crate::image::Hasher;

/// Extended headers and long names are read into memory.
const EXTENSION_LIMIT: u64 = 64 * 1024;

/// Zeros behind the end marker: tar pads to its record size, which is at most this by common sense.
const PADDING_LIMIT: u64 = 1 << 20;

/// The members of a tar archive by name.
#[derive(Debug)]
pub(super) struct TarIndex {
    file: Arc<File>,
    members: HashMap<String, Member>,
    pub(super) warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File { offset: u64, size: u64 },
    Folder,
    SymbolicLink { target: String },
    HardLink { target: String },
}

impl TarIndex {
    /// Reads every header of the first `length` bytes.
    pub(super) fn read(file: Arc<File>, length: u64, limits: &Limits) -> Result<Self, ArchiveError> {
        let mut indexer = Indexer {
            blocks: Blocks::new(&file, length),
            limits,
            members: HashMap::new(),
            warnings: Vec::new(),
            name_bytes: 0,
            pending: Pending::default(),
            dialect: None,
            duplicates: 0,
        };
        indexer.run(&file)?;
        let index = Self {
            members: indexer.members,
            warnings: indexer.warnings,
            file,
        };
        index.resolve_links(limits)
    }

    /// The content of a name; `None` when there is no such file.
    pub(super) fn find(&self, name: &str) -> Option<Content> {
        match self.members.get(name)? {
            Member::File { offset, size } => Some(Content::new(self.file.clone(), *offset, *size)),
            // Links were replaced by what they lead to.
            _ => None,
        }
    }

    /// Every name; folders and links too.
    #[cfg(any(test, fuzzing))]
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// The files in a folder that have this size, by name.
    pub(super) fn of_size(&self, folder: &str, size: u64) -> Vec<(String, Content)> {
        let mut found: Vec<_> = self
            .members
            .iter()
            .filter(|(name, member)| {
                name::parent(name) == folder
                    && matches!(member, Member::File { size: own, .. } if *own == size)
            })
            .filter_map(|(name, _)| Some((name.clone(), self.find(name)?)))
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// Replaces every link by the file that it leads to.
    fn resolve_links(mut self, limits: &Limits) -> Result<Self, ArchiveError> {
        let mut resolved = Vec::new();
        for (name, member) in &self.members {
            if matches!(member, Member::SymbolicLink { .. } | Member::HardLink { .. }) {
                let (file, by_root) = self.follow(name, limits.link_hops)?;
                if by_root {
                    self.warnings.push(format!(
                        "link {name:?} is written from the archive's root instead of its own folder"
                    ));
                }
                resolved.push((name.clone(), file));
            }
        }
        self.warnings.sort();
        self.members.extend(resolved);
        Ok(self)
    }

    fn follow(&self, link: &str, hops: usize) -> Result<(Member, bool), ArchiveError> {
        let (mut name, mut by_root, mut last_target) = (link.to_owned(), false, "");
        for _ in 0..=hops {
            let (wanted, target) = match self.members.get(&name) {
                Some(file @ Member::File { .. }) => return Ok((file.clone(), by_root)),
                Some(Member::HardLink { target }) => (Some(target.clone()), target),
                Some(Member::SymbolicLink { target }) => {
                    let here = name::join(name::parent(&name), target)
                        .filter(|wanted| self.members.contains_key(wanted));
                    // Some producers write links from the root; taken so only where nothing else fits.
                    let root = || name::join("", target).filter(|wanted| self.members.contains_key(wanted));
                    by_root |= here.is_none();
                    (here.or_else(root), target)
                }
                Some(Member::Folder) => return Err(refused(link, last_target, "leads to a folder")),
                None => return Err(refused(link, last_target, "leads to nothing in the archive")),
            };
            last_target = target;
            name = wanted.ok_or_else(|| refused(link, target, "leads to nothing in the archive"))?;
        }
        Err(refused(
            link,
            last_target,
            "leads in a circle, or over too many links",
        ))
    }
}

fn refused(name: &str, target: &str, why: &'static str) -> ArchiveError {
    ArchiveError::Link {
        name: name.into(),
        target: target.into(),
        why,
    }
}

/// What carriers said about the entry that follows them.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

/// How an archive writes long names; mixing both is where readers differ most.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Pax,
    Gnu,
}

struct Indexer<'a> {
    blocks: Blocks<'a>,
    limits: &'a Limits,
    members: HashMap<String, Member>,
    warnings: Vec<String>,
    name_bytes: u64,
    pending: Pending,
    dialect: Option<Dialect>,
    duplicates: u64,
}

impl Indexer<'_> {
    fn run(&mut self, file: &File) -> Result<(), ArchiveError> {
        let mut at = 0;
        let mut entries = 0;
        loop {
            let block = self.blocks.header(at)?;
            if block.iter().all(|byte| *byte == 0) {
                break;
            }
            entries += 1;
            Limits::within("members", entries, self.limits.members)?;
            let header = Header::parse(&block, at)?;
            let body = at + BLOCK as u64;
            let size = match header.kind {
                Kind::File | Kind::HardLink | Kind::SymbolicLink | Kind::Folder => {
                    self.member(file, &header, at, body)?
                }
                _ => {
                    self.carrier(&header, at, body)?;
                    header.size
                }
            };
            at = self.blocks.behind(body, size)?;
        }
        if !self.pending.is_empty() {
            return Err(ArchiveError::malformed(
                format!("end marker at byte {at}"),
                "an extended header is not followed by its entry",
            ));
        }
        self.blocks.check_end(at)
    }

    /// Takes a header that only says something about the next one.
    fn carrier(&mut self, header: &Header, at: u64, body: u64) -> Result<(), ArchiveError> {
        let ambiguous = |why: &str| ArchiveError::ambiguous(format!("entry at byte {at}"), why);
        let dialect = match header.kind {
            Kind::Pax | Kind::PaxGlobal => Dialect::Pax,
            _ => Dialect::Gnu,
        };
        if *self.dialect.get_or_insert(dialect) != dialect {
            return Err(ambiguous("the archive mixes GNU and PAX extended headers"));
        }
        Limits::within("bytes in an extended header", header.size, EXTENSION_LIMIT)?;
        let text = self.blocks.body(body, header.size)?;
        let is_new = match header.kind {
            Kind::PaxGlobal => {
                Pax::check_global(&text, body)?;
                self.pending.is_empty()
            }
            Kind::Pax => self.pending.pax.replace(Pax::parse(&text, body)?).is_none(),
            Kind::GnuLongName => self.pending.long_name.replace(terminated(text)).is_none(),
            _ => self.pending.long_link.replace(terminated(text)).is_none(),
        };
        if is_new {
            Ok(())
        } else {
            Err(ambiguous("an entry has two extended headers of one kind"))
        }
    }

    /// Takes an entry, and answers how many bytes its body has.
    fn member(&mut self, file: &File, header: &Header, at: u64, body: u64) -> Result<u64, ArchiveError> {
        let Pending {
            pax,
            long_name,
            long_link,
        } = std::mem::take(&mut self.pending);
        let pax = pax.unwrap_or_default();
        let is_folder = header.kind == Kind::Folder;
        let name = name::clean(pax.path.or(long_name).as_ref().unwrap_or(&header.name), is_folder)?;
        let size = match pax.size {
            Some(size) if header.size != 0 && header.size != size => {
                return Err(ArchiveError::ambiguous(
                    name,
                    format!(
                        "its header says {} bytes and its extended header {size}",
                        header.size
                    ),
                ));
            }
            Some(size) => size,
            None => header.size,
        };
        if header.kind != Kind::File && size != 0 {
            return Err(ArchiveError::ambiguous(name, "a folder or a link has a body"));
        }
        let link = || {
            let raw = pax.link.as_ref().or(long_link.as_ref()).unwrap_or(&header.link);
            let target = std::str::from_utf8(raw).ok().filter(|t| !t.contains('\0'));
            let usable = target.filter(|target| !target.starts_with('/') && !target.is_empty());
            usable.map(str::to_owned).ok_or_else(|| {
                refused(
                    &name,
                    &String::from_utf8_lossy(&raw[..raw.len().min(80)]),
                    "is absolute, empty or not text",
                )
            })
        };
        let member = match header.kind {
            Kind::Folder => Member::Folder,
            Kind::SymbolicLink => {
                let target = link()?;
                if name::join(name::parent(&name), &target).is_none() && name::join("", &target).is_none() {
                    return Err(refused(&name, &target, "leaves the archive"));
                }
                Member::SymbolicLink { target }
            }
            Kind::HardLink => {
                let target = link()?;
                let clean = name::clean(target.as_bytes(), false)
                    .map_err(|_| refused(&name, &target, "leaves the archive"))?;
                // Backwards only, so that a hard link always leads to a file.
                if !self.members.contains_key(&clean) {
                    return Err(refused(&name, &target, "leads to nothing before it"));
                }
                Member::HardLink { target: clean }
            }
            _ => Member::File { offset: body, size },
        };
        self.blocks.behind(body, size)?;
        self.insert(file, name, member, at)?;
        Ok(size)
    }

    fn insert(&mut self, file: &File, name: String, member: Member, at: u64) -> Result<(), ArchiveError> {
        let Some(earlier) = self.members.get(&name) else {
            self.name_bytes += name.len() as u64 + 64;
            Limits::within("bytes of names", self.name_bytes, self.limits.name_bytes)?;
            self.members.insert(name, member);
            return Ok(());
        };
        self.duplicates += u64::from(!matches!(member, Member::Folder));
        Limits::within("names that stand twice", self.duplicates, self.limits.duplicates)?;
        let equal = match (earlier, &member) {
            (
                Member::File { offset, size },
                Member::File {
                    offset: again,
                    size: length,
                },
            ) => {
                size == length
                    && hash(file, *offset, *size)
                        .and_then(|a| Ok(a == hash(file, *again, *size)?))
                        .map_err(|error| ArchiveError::io(&name, error))?
            }
            (earlier, later) => earlier == later,
        };
        if !equal {
            return Err(ArchiveError::ambiguous(
                name,
                format!("the name stands twice, again at byte {at}, with different content"),
            ));
        }
        if member != Member::Folder {
            self.warnings
                .push(format!("{name:?} stands twice, with equal content"));
        }
        Ok(())
    }
}

/// GNU's long names end in a NUL.
fn terminated(mut text: Vec<u8>) -> Vec<u8> {
    if text.last() == Some(&0) {
        text.pop();
    }
    text
}

fn hash(file: &File, offset: u64, size: u64) -> io::Result<crate::image::Digest> {
    let mut hasher = Hasher::sha256();
    let mut buffer = vec![0; 128 * 1024];
    let mut position = 0;
    while position < size {
        let wanted = buffer
            .len()
            .min(usize::try_from(size - position).unwrap_or(usize::MAX));
        let read = file.read_at(&mut buffer[..wanted], offset + position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..read]);
        position += read as u64;
    }
    Ok(hasher.finish())
}

/// Reads headers by position, a few at a time.
struct Blocks<'a> {
    file: &'a File,
    length: u64,
    buffer: Vec<u8>,
    start: u64,
}

/// Small members lie close together; reading more would be wasted on large ones.
const READ_AHEAD: usize = 8 * BLOCK;

impl<'a> Blocks<'a> {
    fn new(file: &'a File, length: u64) -> Self {
        Self {
            file,
            length,
            buffer: Vec::new(),
            start: 0,
        }
    }

    fn header(&mut self, at: u64) -> Result<[u8; BLOCK], ArchiveError> {
        let truncated = || {
            ArchiveError::malformed(
                format!("byte {at}"),
                "the archive ends without its end marker; it was cut off",
            )
        };
        if self.length < at + BLOCK as u64 {
            return Err(truncated());
        }
        let end = at + BLOCK as u64;
        if at < self.start || self.start + (self.buffer.len() as u64) < end {
            let wanted = (self.length - at).min(READ_AHEAD as u64);
            self.buffer = self.read(at, wanted)?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        self.buffer
            .get(from..from + BLOCK)
            .and_then(|block| block.try_into().ok())
            .ok_or_else(truncated)
    }

    fn body(&self, at: u64, size: u64) -> Result<Vec<u8>, ArchiveError> {
        self.behind(at, size)?;
        self.read(at, size)
    }

    /// Where the block behind a body begins.
    fn behind(&self, body: u64, size: u64) -> Result<u64, ArchiveError> {
        let end = body + size;
        if end > self.length {
            return Err(ArchiveError::malformed(
                format!("entry at byte {}", body - BLOCK as u64),
                "the archive ends inside it; it was cut off",
            ));
        }
        Ok(end.next_multiple_of(BLOCK as u64))
    }

    fn read(&self, at: u64, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ArchiveError::Changed {
                    what: "the archive".into(),
                },
                _ => ArchiveError::io("the archive", error),
            })?;
        Ok(bytes)
    }

    /// Two zero blocks, and nothing but zeros behind them.
    fn check_end(&mut self, at: u64) -> Result<(), ArchiveError> {
        let second = self.header(at + BLOCK as u64)?;
        if second.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::malformed(
                format!("end marker at byte {at}"),
                "it is one zero block instead of two",
            ));
        }
        let rest = at + 2 * BLOCK as u64;
        Limits::within("bytes behind the end marker", self.length - rest, PADDING_LIMIT)?;
        let mut reader = Content::new(
            Arc::new(
                self.file
                    .try_clone()
                    .map_err(|e| ArchiveError::io("the archive", e))?,
            ),
            rest,
            self.length - rest,
        )
        .reader();
        let mut buffer = [0; 8192];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) if buffer[..read].iter().all(|byte| *byte == 0) => {}
                Ok(_) => {
                    return Err(ArchiveError::malformed(
                        format!("byte {rest}"),
                        "something is hidden behind the end marker",
                    ));
                }
                Err(error) => return Err(ArchiveError::io("the archive", error)),
            }
        }
    }
}
