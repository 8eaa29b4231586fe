//! QUIC alone, as the yardstick: two processes, memory to memory, with the transport settings that nodes use; and the same from file
//! to file.

mod files;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use quinn::{
    ClientConfig, Connection, EndpointConfig, ServerConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde::{Deserialize, Serialize};
use zumastor::exit::Failure;
use zumastor_net::{endpoint, transport_config};
use zumastor_testbed::{cpu, peak_memory};

use super::{
    link::Link,
    measure::{Sample, Spent},
};

/// What one process of the pair does; started by [`run`], never by a person.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// Receives until the sender is done.
    Receive {
        /// Where to listen.
        here: IpAddr,
        /// What is written and hashed; if nothing, what comes is forgotten.
        file: Option<PathBuf>,
    },
    /// Sends so many bytes.
    Send {
        /// Where from.
        here: IpAddr,
        /// Where the receiver is.
        address: SocketAddr,
        /// Its certificate, hexadecimal.
        certificate: String,
        /// How many bytes.
        bytes: u64,
        /// What is read and hashed; if nothing, what is sent is made up.
        file: Option<PathBuf>,
    },
}

/// What a process tells about itself when it is done.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    seconds: f64,
    spent: Spent,
}

/// Moves so many bytes from one process to another.
pub fn run(link: &Link, bytes: u64) -> Result<Sample, Failure> {
    between(link, bytes, None)
}

/// Moves the first bytes of a file to another one, and hashes them at both ends.
pub fn run_files(link: &Link, bytes: u64, from: &Path, to: &Path) -> Result<Sample, Failure> {
    between(link, bytes, Some([from, to]))
}

fn between(link: &Link, bytes: u64, files: Option<[&Path; 2]>) -> Result<Sample, Failure> {
    let this = std::env::current_exe().map_err(Failure::doing("finding this program"))?;
    let doing = || Failure::doing::<std::io::Error>("running raw QUIC");
    let wire = link.bytes().map_err(doing())?;
    let mut receiver = link
        .at_far(&this)
        .args(["raw", "receive", &link.far().to_string()])
        .args(files.map(|[_, to]| to))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(doing())?;
    let mut lines = BufReader::new(receiver.stdout.take().expect("it was asked for")).lines();
    let mut line = || lines.next().unwrap_or_else(|| Ok(String::new())).map_err(doing());
    let at = line()?;
    let sent = Command::new(&this)
        .args(["raw", "send", &link.near().to_string()])
        .args(at.split_whitespace())
        .arg(bytes.to_string())
        .args(files.map(|[from, _]| from))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(doing());
    let received = sent.is_ok().then(&mut line).transpose();
    if !sent.as_ref().is_ok_and(|sent| sent.status.success()) {
        receiver.kill().map_err(doing())?;
    }
    receiver.wait().map_err(doing())?;
    let wire = link.bytes().map_err(doing())? - wire;
    let told = |json: &str| -> Result<Told, Failure> {
        serde_json::from_str(json).map_err(Failure::doing("raw QUIC broke off"))
    };
    let sender = told(&String::from_utf8_lossy(&sent?.stdout))?;
    let receiver = told(&received?.unwrap_or_default())?;
    Ok(Sample { seconds: sender.seconds, sender: sender.spent, receiver: receiver.spent, wire })
}

/// Plays a role, in a process of its own.
pub fn play(role: Role) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::doing("starting a runtime"))?;
    let told = runtime.block_on(async {
        match role {
            Role::Receive { here, file } => receive(here, file).await,
            Role::Send { here, address, certificate, bytes, file } => {
                send(here, address, &certificate, bytes, file).await
            }
        }
    });
    let told = told.map_err(|error| Failure::failed(format!("raw QUIC: {error}")))?;
    println!("{}", serde_json::to_string(&told).map_err(Failure::doing("raw QUIC"))?);
    Ok(())
}

type Anything = Box<dyn std::error::Error + Send + Sync>;

async fn receive(here: IpAddr, file: Option<PathBuf>) -> Result<Told, Anything> {
    let file = file.map(|file| files::create(&file)).transpose()?.map(Arc::new);
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport_config());
    let endpoint = endpoint(SocketAddr::new(here, 0), EndpointConfig::default(), Some(config))?;
    let hex: String = made.cert.der().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{} {hex}", endpoint.local_addr()?);
    let connection = endpoint.accept().await.ok_or("nobody came")?.await?;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let (mut answer, mut data) = connection.accept_bi().await?;
        let file = file.clone();
        tasks.spawn(async move {
            match file {
                Some(file) => files::receive(data, file).await?,
                None => while data.read_chunk(1 << 20, true).await?.is_some() {},
            }
            answer.write_all(b"!").await?;
            answer.finish()?;
            Ok::<_, Anything>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let seconds = start.elapsed().as_secs_f64();
    connection.closed().await;
    told(seconds)
}

async fn send(
    here: IpAddr,
    address: SocketAddr,
    certificate: &str,
    bytes: u64,
    file: Option<PathBuf>,
) -> Result<Told, Anything> {
    let file = file.map(File::open).transpose()?.map(Arc::new);
    let digits: Vec<u8> = (0..certificate.len() / 2)
        .map(|at| u8::from_str_radix(&certificate[at * 2..at * 2 + 2], 16))
        .collect::<Result<_, _>>()?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(digits))?;
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport_config());
    let endpoint = endpoint(SocketAddr::new(here, 0), EndpointConfig::default(), None)?;
    let mut content = vec![0; 1 << 20];
    SmallRng::seed_from_u64(1).fill_bytes(&mut content);
    let content = Arc::new(content);
    let start = Instant::now();
    let connection = endpoint.connect_with(config, address, NAME)?.await?;
    let mut tasks = tokio::task::JoinSet::new();
    for stream in 0..STREAMS {
        let part = files::part(bytes, stream, STREAMS);
        match &file {
            Some(file) => tasks.spawn(files::send(connection.clone(), Arc::clone(file), part)),
            None => tasks.spawn(fill(connection.clone(), Arc::clone(&content), part.end - part.start)),
        };
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let seconds = start.elapsed().as_secs_f64();
    connection.close(VarInt::from_u32(0), b"done");
    endpoint.wait_idle().await;
    told(seconds)
}

async fn fill(connection: Connection, content: Arc<Vec<u8>>, bytes: u64) -> Result<(), Anything> {
    let (mut data, mut answer) = connection.open_bi().await?;
    let mut left = bytes;
    while left > 0 {
        let length = left.min(content.len() as u64) as usize;
        data.write_all(&content[..length]).await?;
        left -= length as u64;
    }
    data.finish()?;
    // The last byte has arrived when this has.
    answer.read_exact(&mut [0]).await?;
    Ok(())
}

fn told(seconds: f64) -> Result<Told, Anything> {
    let pid = std::process::id();
    Ok(Told { seconds, spent: Spent { cpu: cpu(pid)?.own, peak: peak_memory(pid)? } })
}

/// The same cipher first.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

/// As many as a transfer has.
const STREAMS: u64 = 4;

const NAME: &str = "raw";
