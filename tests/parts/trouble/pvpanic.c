// SPDX-License-Identifier: GPL-2.0
/* Tells QEMU's pvpanic-pci of a panic, in kernels that were built without a driver for it. */
#include <linux/module.h>
#include <linux/panic_notifier.h>
#include <linux/pci.h>

#define PANICKED 1

static void __iomem *port;

static int tell(struct notifier_block *self, unsigned long code, void *text)
{
	iowrite8(PANICKED, port);
	return NOTIFY_DONE;
}

static struct notifier_block teller = { .notifier_call = tell, .priority = INT_MAX };

static int probe(struct pci_dev *device, const struct pci_device_id *id)
{
	int failed = pcim_enable_device(device);

	if (failed)
		return failed;
	port = pcim_iomap(device, 0, 0);
	if (!port)
		return -ENOMEM;
	return atomic_notifier_chain_register(&panic_notifier_list, &teller);
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(PCI_VENDOR_ID_REDHAT, 0x0011) }, { } };

static struct pci_driver teller_driver = { .name = "pvpanic", .id_table = ids, .probe = probe };

builtin_pci_driver(teller_driver);
MODULE_LICENSE("GPL");
