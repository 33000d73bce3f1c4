//! The client's side of the admin socket: `pollux get`, `pollux stats`, `pollux conntrack`, the demo and the
//! tests.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{Filter, Line, Request, Resource, StatsItem};
use crate::cli::Failure;

/// Longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a running agent.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

/// The items of an answer, one after the other. An item is as it was sent.
pub struct Answer<'a> {
    client: &'a mut Client,
    ended: bool,
}

impl Client {
    /// Connects to the agent that listens at `path`.
    ///
    /// # Errors
    /// Exit code 4 when nobody listens there, or it is not this user's to ask.
    pub fn connect(path: &Path) -> Result<Client, Failure> {
        let shown = path.display();
        let stream = UnixStream::connect(path).map_err(|error| {
            Failure::environment(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                    "admin socket {shown}: nobody listens there: start `pollux run`, or name its socket with --admin"
                ),
                io::ErrorKind::PermissionDenied => {
                    format!("admin socket {shown}: no permission: ask as the user that `pollux run` runs as")
                }
                _ => format!("admin socket {shown}: {error}"),
            })
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream), path: path.to_owned() })
    }

    /// Asks.
    ///
    /// # Errors
    /// Exit code 4 when the agent has gone.
    pub fn ask(&mut self, request: &Request) -> Result<Answer<'_>, Failure> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| self.lost(&error))?;
        Ok(Answer { client: self, ended: false })
    }

    /// The items of a table, read into their type (see [`protocol`](super::protocol)).
    ///
    /// # Errors
    /// Exit code 2 when the filter is wrong, 4 when the agent has gone.
    pub fn get<T: DeserializeOwned>(
        &mut self,
        resource: Resource,
        filter: Filter,
    ) -> Result<Vec<T>, Failure> {
        let items = self.ask(&Request::Get { resource, filter })?;
        items.map(|item| Ok(serde_json::from_value(item?).map_err(io::Error::other)?)).collect()
    }

    /// All counters.
    ///
    /// # Errors
    /// Exit code 4 when the agent has gone.
    pub fn stats(&mut self) -> Result<StatsItem, Failure> {
        let mut answer = self.ask(&Request::Stats)?;
        let item = answer.next().unwrap_or_else(|| Err(Failure::environment("no counters came")))?;
        answer.try_for_each(|more| more.map(drop))?;
        Ok(serde_json::from_value(item).map_err(io::Error::other)?)
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::environment(format!("admin socket {}: {error}", self.path.display()))
    }
}

impl Answer<'_> {
    /// Asks for the end of an answer that has none of its own: nothing more is asked on this connection. What is on its
    /// way still comes.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn end(&self) -> io::Result<()> {
        self.client.stream.get_ref().shutdown(std::net::Shutdown::Write)
    }

    /// Waits until there is something to read, or the time is over: whether there is.
    ///
    /// # Errors
    /// When the kernel does not let it wait.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        if !self.client.stream.buffer().is_empty() {
            return Ok(true);
        }
        let socket = self.client.stream.get_ref().as_fd();
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Value, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut text = String::new();
        let line = match self.client.stream.read_line(&mut text) {
            Ok(0) => Err(self.client.lost(&io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => serde_json::from_str(&text).map_err(|error| self.client.lost(&error.into())),
            Err(error) => Err(self.client.lost(&error)),
        };
        match line {
            Ok(Line::Item(item)) => Some(Ok(item)),
            Ok(Line::Done { .. }) => {
                self.ended = true;
                None
            }
            Ok(Line::Error(text)) => {
                self.ended = true;
                Some(Err(Failure::bad_input(text)))
            }
            Err(failure) => {
                self.ended = true;
                Some(Err(failure))
            }
        }
    }
}
