//! What is looked at before DPDK is asked, because DPDK's own answers do not say what to do.

use std::fs;
use std::io;
use std::path::Path;

/// Drivers of the kernel that hand a PCI device to DPDK.
const HANDED_OVER: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Drivers of the kernel that share their device with DPDK: it stays bound to them.
const SHARED: [&str; 3] = ["mlx4_core", "mlx5_core", "mana"];

/// Whether the machine has `memory` MiB in free huge pages.
///
/// # Errors
/// One line that says how many there are and how to get more.
pub(super) fn huge_pages(sysfs: &Path, memory: u32) -> io::Result<()> {
    let wanted = u64::from(memory) << 10;
    let sizes = fs::read_dir(sysfs.join("kernel/mm/hugepages")).into_iter().flatten().flatten();
    let mut free = 0;
    for size in sizes {
        let name = size.file_name().into_string().unwrap_or_default();
        let kib =
            name.strip_prefix("hugepages-").and_then(|name| name.strip_suffix("kB")?.parse::<u64>().ok());
        free += kib.unwrap_or(0) * number(&size.path().join("free_hugepages")).unwrap_or(0);
    }
    if free >= wanted {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!(
            "no huge pages for DPDK: {memory} MiB are wanted, {} MiB are free; reserve some \
             (echo {} > /proc/sys/vm/nr_hugepages), or do without (hugepages: false)",
            free >> 10,
            wanted.div_ceil(2048)
                + number(&sysfs.join("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")).unwrap_or(0)
        ),
    ))
}

/// Whether the PCI device at `address` is there and bound to a driver through which DPDK reaches it.
///
/// # Errors
/// One line that says what it is bound to, and how to change it.
pub(super) fn pci_device(sysfs: &Path, address: &str) -> io::Result<()> {
    let device = sysfs.join("bus/pci/devices").join(address);
    if !device.exists() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no PCI device {address}; dpdk-devbind.py --status-dev net lists the network cards"),
        ));
    }
    let driver = fs::read_link(device.join("driver")).ok();
    let driver = driver.as_deref().and_then(|path| path.file_name()?.to_str()).unwrap_or("no driver");
    if SHARED.contains(&driver) {
        return Ok(());
    }
    if !HANDED_OVER.contains(&driver) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the PCI device {address} is bound to {driver}, not to vfio-pci: DPDK can not reach it; \
                 bind it: dpdk-devbind.py --bind=vfio-pci {address}"
            ),
        ));
    }
    if driver == "vfio-pci" {
        let group = fs::read_link(device.join("iommu_group")).ok();
        let Some(group) = group.as_deref().and_then(|path| path.file_name()?.to_str()) else {
            return Ok(()); // without an IOMMU: vfio's unsafe mode, DPDK says whether it is on
        };
        let node = format!("/dev/vfio/{group}");
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(&node)
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return Err(io::Error::new(
                error.kind(),
                format!("{node}, the IOMMU group of {address}: {error}; run as root or own that file"),
            ));
        }
    }
    Ok(())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A directory that looks like /sys and is removed in the end.
    struct Sysfs(PathBuf);

    impl Sysfs {
        fn new(name: &str) -> Sysfs {
            let path = std::env::temp_dir().join(format!("pollux-sysfs-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Sysfs(path)
        }

        fn with_pages(&self, size: &str, total: u64, free: u64) {
            let path = self.0.join("kernel/mm/hugepages").join(size);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("nr_hugepages"), format!("{total}\n")).unwrap();
            fs::write(path.join("free_hugepages"), format!("{free}\n")).unwrap();
        }

        fn with_device(&self, address: &str, driver: Option<&str>) {
            let path = self.0.join("bus/pci/devices").join(address);
            fs::create_dir_all(&path).unwrap();
            if let Some(driver) = driver {
                std::os::unix::fs::symlink(format!("../../drivers/{driver}"), path.join("driver")).unwrap();
            }
        }
    }

    impl Drop for Sysfs {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn too_few_huge_pages_are_said_with_the_number_to_reserve() {
        let sysfs = Sysfs::new("pages");
        let error = huge_pages(&sysfs.0, 64).unwrap_err();
        assert!(error.to_string().contains("64 MiB are wanted, 0 MiB are free"), "{error}");
        sysfs.with_pages("hugepages-2048kB", 10, 4);
        let error = huge_pages(&sysfs.0, 64).unwrap_err().to_string();
        assert!(error.contains("8 MiB are free") && error.contains("echo 42 > "), "{error}");
        sysfs.with_pages("hugepages-1048576kB", 1, 1);
        huge_pages(&sysfs.0, 64).unwrap();
    }

    #[test]
    fn a_device_of_the_kernels_is_refused_with_the_command_that_binds_it() {
        let sysfs = Sysfs::new("pci");
        let error = pci_device(&sysfs.0, "0000:03:00.0").unwrap_err();
        assert!(error.to_string().starts_with("no PCI device 0000:03:00.0"), "{error}");
        sysfs.with_device("0000:03:00.0", Some("e1000e"));
        let error = pci_device(&sysfs.0, "0000:03:00.0").unwrap_err().to_string();
        assert!(
            error.contains("bound to e1000e") && error.contains("--bind=vfio-pci 0000:03:00.0"),
            "{error}"
        );
        sysfs.with_device("0000:04:00.0", None);
        let error = pci_device(&sysfs.0, "0000:04:00.0").unwrap_err().to_string();
        assert!(error.contains("bound to no driver"), "{error}");
        for (address, driver) in
            [("0000:05:00.0", "uio_pci_generic"), ("0000:06:00.0", "mlx5_core"), ("0000:07:00.0", "vfio-pci")]
        {
            sysfs.with_device(address, Some(driver));
            pci_device(&sysfs.0, address).unwrap();
        }
    }
}
