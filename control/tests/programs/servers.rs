//! The programs' servers, in the foreground, with everything that they need in the site's directory.

use std::fs;

use super::site::{At, FAR, Outcome, POD_B, Site};

/// Bytes of the file that is transferred.
pub(crate) const CONTENT: usize = 3_000_000;

/// The machines that servers run on, behind the Services near and far.
pub(crate) const SERVERS: [&str; 2] = [POD_B, FAR];

/// The names that the DNS servers know, with an IPv4 address and with a text longer than a small datagram.
pub(crate) const NAME: (&str, &str) = ("a.pollux.test", "203.0.113.9");
pub(crate) const TEXT: (&str, usize) = ("text.pollux.test", 200);

impl Site {
    /// nginx over HTTP and HTTPS: files under `/`, `PUT` under `/upload/NODE/`, its counters at `/status`.
    pub(crate) fn serve_http(&mut self, node: &str) -> Outcome {
        self.content()?;
        let at = |name: &str| self.path(name).display().to_string();
        let home = self.path(format!("nginx-{node}"));
        fs::create_dir_all(home.join("temp"))?;
        fs::create_dir_all(self.path(format!("www/upload/{node}")))?;
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("  {kind}_temp_path {}/temp/{kind};\n", home.display()))
            .concat();
        let (http, https) = (At::Http.target(), At::Https.target());
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {}/pid;\nerror_log stderr warn;\n\
             worker_rlimit_nofile 8192;\nevents {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  client_max_body_size 100m;\n  keepalive_requests 100000;\n{temporary}\
             \x20 server {{\n    listen {http} backlog=4096;\n    listen [::]:{http} backlog=4096;\n\
             \x20   listen {https} ssl;\n    listen [::]:{https} ssl;\n\
             \x20   ssl_certificate {};\n    ssl_certificate_key {};\n    root {};\n\
             \x20   location /upload/ {{ dav_methods PUT; }}\n    location = /status {{ stub_status; }}\n  }}\n}}\n",
            home.display(),
            at("certificate.pem"),
            at("key.pem"),
            at("www"),
        );
        let file = home.join("nginx.conf");
        fs::write(&file, configuration)?;
        let (file, home) = (file.display().to_string(), home.display().to_string());
        self.daemon(node, "nginx", &["-c", &file, "-p", &home, "-e", "stderr"], (https, 2))
    }

    /// dnsmasq over UDP and TCP.
    pub(crate) fn serve_dns(&mut self, node: &str) -> Outcome {
        let record = format!("--host-record={},{}", NAME.0, NAME.1);
        let text = format!("--txt-record={}{}", TEXT.0, format!(",{}", "x".repeat(TEXT.1)).repeat(4));
        let arguments = [
            "--no-daemon", // also: no process for each connection
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            &record,
            &text,
        ];
        self.daemon(node, "dnsmasq", &arguments, (At::Dns.target(), 1))
    }

    /// iperf3.
    pub(crate) fn serve_iperf(&mut self, node: &str) -> Outcome {
        self.daemon(node, "iperf3", &["-s"], (At::Iperf.target(), 1))
    }

    /// `openssl s_server`, which answers a request with the file as it is; one for each family.
    pub(crate) fn serve_tls(&mut self, node: &str) -> Outcome {
        self.content()?;
        let port = At::Tls.target().to_string();
        for (before, family) in ["-4", "-6"].into_iter().enumerate() {
            let arguments = [
                "s_server",
                family,
                "-accept",
                &port,
                "-HTTP",
                "-cert",
                "certificate.pem",
                "-key",
                "key.pem",
                "-quiet",
            ];
            self.daemon(node, "openssl", &arguments, (At::Tls.target(), before + 1))?;
        }
        Ok(())
    }

    /// The file that is transferred, and a certificate.
    fn content(&self) -> Outcome {
        if self.path("content").exists() {
            return Ok(());
        }
        fs::create_dir_all(self.path("www"))?;
        let mut bytes = vec![0; CONTENT];
        pollux_control::lab::traffic::Payload::new(1).fill(&mut bytes);
        fs::write(self.path("content"), &bytes)?;
        fs::write(self.path("www/content"), &bytes)?;
        fs::write(self.path("www/small"), "small\n")?;
        let (key, certificate) =
            (self.path("key.pem").display().to_string(), self.path("certificate.pem").display().to_string());
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let named = ["-subj", "/CN=pollux.test", "-days", "30", "-keyout", &key, "-out", &certificate];
        let arguments: Vec<&str> = ["req", "-x509"].into_iter().chain(curve).chain(named).collect();
        self.output(POD_B, "openssl", &arguments)?;
        Ok(())
    }
}
