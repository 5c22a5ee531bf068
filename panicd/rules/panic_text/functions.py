"""Functions of Linux that traces name although the trouble is elsewhere.

Each table is a list of names; ``*`` stands for any rest. A name that a table lacks costs little: a
signature then has one frame that says less.

Source: Linux. Reporting functions: ``kernel/panic.c``, ``arch/*/mm/fault.c``,
``arch/x86/include/asm/idtentry.h``, ``mm/kasan``. Helpers: ``lib``. Waiting: ``kernel/sched``,
``kernel/locking``. Dispatching: ``arch/*/entry``, ``kernel/softirq.c``, ``kernel/workqueue.c``,
``kernel/time``.
"""

import re
from collections.abc import Callable
from typing import Final


def _table(globs: str) -> Callable[[str], bool]:
    """Return the test for a function's presence in a table."""
    names = (re.escape(glob).replace(r"\*", r"\w*") for glob in globs.split())
    pattern = re.compile("|".join(names))
    return lambda name: pattern.fullmatch(name) is not None


reports: Final = _table("""
    dump_stack* __dump_stack show_stack* dump_backtrace* show_regs* show_trace* unwind_backtrace
    walk_stackframe dump_cpu_task *sched_show_task print_report* print_address_* print_*_bug
    print_*cycle* print_*deadlock* print_cpu_stall print_other_cpu_stall printk* _printk vprintk*
    console_* panic nmi_panic vpanic __warn* warn_slowpath* report_bug* fixup_bug* handle_bug
    bug_handler* brk_handler* call_break_hook do_debug_exception die __die die_* oops_* no_context
    bad_area* __bad_area* bad_mode page_fault* do_page_fault __do_page_fault do_user_addr_fault
    do_kern_addr_fault async_page_fault spurious_* __do_kernel_fault do_tag_check_fault
    do_mem_abort do_translation_fault do_alignment_fault do_bad* do_sea do_sp_pc_abort
    do_DataAbort do_undefinstr __dabt_* __und_* exc_* asm_exc_* error_entry general_protection
    do_general_protection do_error_trap do_trap* do_invalid_op invalid_op divide_error
    do_divide_error double_fault do_double_fault df_* int3 do_int3 ret_from_exception do_el1*
    do_el0_* el1_* el1h* el0_* el0t* arm64_notify_die arm64_serror_panic __x86_indirect_*
    __x86_return_thunk kasan_* __kasan_* __asan_* *hwasan_* kmsan_* __msan_* kcsan_* __tsan_*
    *kfence_* *ubsan_* handle_overflow check_memory_region* check_panic_on_warn end_report*
    start_report* lockdep_* lock_acquire* lock_release* lock_is_held* __lock_acquire
    __lock_release check_noncircular check_prev* check_usage* check_irq_usage validate_chain
    mark_lock* mark_held_locks register_lock_class look_up_lock_class valid_state debug_object*
    debug_print_object debug_check_* debug_lockdep_* debug_smp_* __might_sleep __might_fault
    __might_resched ___might_sleep __schedule_bug bad_page* object_err slab_err slab_bug* slab_fix
    check_preemption_disabled rcu_check_callbacks rcu_sched_clock_irq rcu_dump_* check_cpu_stall
    watchdog watchdog_timer_fn watchdog_overflow_* nmi_cpu_backtrace* nmi_trigger_* arch_trigger_*
    trigger_all_cpu_* trigger_single_cpu_* should_fail* fail_dump usercopy_abort __check_object_size
    __check_heap* fortify_panic __fortify_* __stack_chk_fail refcount_* skb_panic skb_over_panic
    skb_under_panic stack_trace_* save_stack* stack_depot_* __sanitizer_cov_* write_comp_data
    check_kcov_mode
""")
"""Functions that report a trouble, catch it, or check for it."""

helps: Final = _table("""
    memcpy* memset* memmove* memcmp* memchr* memscan* __memcpy* __memset* __memmove* strcpy*
    strncpy* strcmp strncmp strlen strnlen strlcpy strscpy* strchr* strrchr strcat strncat strlcat
    strcase* strsep strspn strpbrk str*dup* __str* copy_to_* copy_from_* _copy_* __copy_*
    raw_copy_* copy_user_* clear_user* rep_movs* rep_stos* csum_partial* csum_and_* _raw_*
    do_raw_* raw_spin_* *queued_spin_* spin_lock* spin_unlock* arch_spin* arch_local_* list_add*
    list_del* __list_* hlist_* arch_atomic* test_bit* set_bit* clear_bit* test_and_* find_*bit*
    _find_* bitmap_* cpumask_* kmalloc* __kmalloc* kzalloc* kfree* kvfree* kmem_cache_* ___cache_*
    __cache_* slab_* __slab_* ___slab_* new_slab allocate_slab alloc_pages* __alloc_pages*
    free_pages* krealloc* kobject_put kobject_get kobject_uevent* put_page get_page rb_erase*
    rb_insert_* rb_next rb_prev rb_first* __rb_* timerqueue_* percpu_counter_* percpu_ref_*
    this_cpu_* rcu_read_* rcu_lock_* __local_bh_* local_bh_* delay_tsc delay_mwaitx delay_halt*
    delay_loop __delay __const_udelay __udelay skb_put skb_push skb_pull qlist_* quarantine_*
""")
"""Helper functions, which any caller may have misused."""

waits: Final = _table("""
    context_switch schedule schedule_timeout* schedule_hrtimeout* schedule_preempt_disabled
    __schedule preempt_schedule* ___preempt_schedule* __switch_to switch_to retint_kernel mutex_*
    __mutex_* ww_mutex_* __ww_* rwsem_* __rwsem_* rwbase_* rt_mutex_* rtlock_* down down_read*
    down_write* down_interruptible down_killable down_timeout __down* percpu_rwsem* percpu_down*
    wait_for_completion* wait_for_common* wait_on_* wait_event* wait_woken wait_rcu_gp
    __wait_rcu_gp __wait_for_common* __wait_on_* __wait_event* do_wait_for_common do_wait_intr*
    out_of_line_wait* bit_wait* io_schedule* folio_wait* folio_lock* __folio_lock* lock_page*
    __lock_page* usleep* msleep* flush_work* __flush_work* lock_sock_nested __lock_sock
""")
"""Functions in which a thread sleeps, whatever it waits for."""

interrupts: Final = _table("""
    sysvec_* asm_sysvec_* __sysvec_* apic_timer_interrupt smp_apic_timer_interrupt*
    asm_call_*on_stack common_interrupt asm_common_interrupt call_function*interrupt
    smp_call_function*interrupt reschedule_interrupt smp_reschedule_interrupt ret_from_intr
    el1_irq el1h_irq el1h_64_irq* el1_interrupt do_interrupt_handler call_on_irq_stack __irq_svc
    timer_interrupt* decrementer_common* handle_arch_irq asm_exc_nmi end_repeat_nmi nmi
""")
"""Where a CPU was interrupted: earlier functions in the trace are the interrupt's own."""

idles: Final = _table("""
    native_halt native_safe_halt pv_native_safe_halt safe_halt default_idle* arch_cpu_idle*
    cpuidle_* acpi_*idle* intel_idle* mwait_idle* do_idle cpu_startup_entry cpu_do_idle poll_idle
""")
"""Functions of an idle CPU."""

awaits_cpus: Final = _table("""
    smp_call_function* csd_lock_wait* __csd_* generic_exec_single
""")
"""Functions in which a CPU waits for other CPUs."""

dispatches: Final = _table("""
    do_syscall_* do_int80_* do_fast_syscall* entry_* invoke_syscall* el0_svc* do_el0_svc
    ret_fast_syscall system_call* syscall_* tracesys* sysenter_* sys_ioctl ksys_ioctl vfs_ioctl
    do_vfs_ioctl file_ioctl compat_ioctl vfs_read __vfs_read vfs_write __vfs_write new_sync_read
    new_sync_write do_iter_* call_read_iter call_write_iter sock_sendmsg* __sock_sendmsg
    sock_recvmsg* netlink_* genl_rcv* genl_family_rcv* rtnetlink_rcv* nfnetlink_rcv*
    process_one_work worker_thread kthread smpboot_thread_fn ret_from_fork* task_work_run __fput
    ____fput exit_to_user_mode* exit_to_usermode* call_timer_fn expire_timers __run_timers*
    run_timer_softirq run_timer_base __hrtimer_run_queues hrtimer_run_queues hrtimer_run_softirq
    __run_hrtimer hrtimer_interrupt __do_softirq do_softirq* handle_softirqs run_ksoftirqd
    tasklet_action* rcu_do_batch rcu_core* net_rx_action netif_receive_skb* __netif_receive_skb*
    process_backlog __napi_poll napi_poll
""")
"""Functions that only dispatch work: of a system call, a timer, a work queue, a packet."""

RENAMED: Final = {
    "synchronize_sched": "synchronize_rcu",
    "synchronize_rcu_expedited": "synchronize_rcu",
    "synchronize_sched_expedited": "synchronize_rcu",
}
"""Functions that have several names, in one version or another."""
